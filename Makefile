# Two commands do all the set-up: `make demo` and `make test`. Both build what is missing and say how long it takes.
# Everything built from upstream goes to a cache that all checkouts share (KUBLER_CACHE, else ~/.cache/kubler).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CARGO ?= cargo
CACHE := $(if $(KUBLER_CACHE),$(KUBLER_CACHE),$(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/kubler)
TARGET := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
TOOLS := $(CACHE)/tools
# As kube/build builds them, so that nothing is compiled a second time.
GO_ENV := cd kube/kubernetes && GOWORK=off CGO_ENABLED=0 GOFLAGS='-mod=readonly -buildvcs=false -trimpath'
GO_VERSION := -ldflags '-X k8s.io/component-base/version.gitVersion=v1.34.4 -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=34'
SCHEMATHESIS := schemathesis==4.32.5
# One selection of crates for everything that is run, so that dependencies are built once.
WORKSPACE := --workspace --locked

.PHONY: help
help: ## Show what can be made.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

.PHONY: demo
demo: kube ## Run the main job on real parts: five CI jobs, five clusters, five verified ends.
	@echo "build: kubler-server, kubler and the demo (first time about 6 minutes on 2 cores, then seconds)"
	@$(CARGO) build $(WORKSPACE) --bins
	@$(TARGET)/debug/demo

.PHONY: lab
lab: lab-programs ## Bring up a whole cluster with a node on this machine, as root, until Ctrl-C.
	@$(CARGO) build $(WORKSPACE) --bins
	@echo "lab: about 10 seconds"
	@$(TARGET)/debug/lab

.PHONY: lab-programs
lab-programs:
	@test "$$(id -u)" = 0 || { echo "lab: a node needs root; hint: sudo make lab"; exit 1; }
	@scripts/need containerd runc ip:iproute2 iptables ipset unshare:util-linux busybox:busybox-static \
		/usr/lib/cni/ptp:containernetworking-plugins
	@kube/build etcd kubectl stock lab >/dev/null

.PHONY: test
test: programs ## Run all tests (about 5 minutes once built).
	@echo "test: compiling and running; single-threaded where real clusters are started"
	@$(CARGO) test $(WORKSPACE)
	@$(GO_ENV) go test $(GO_VERSION) ./...
	@cd kube/agent/zzglob && GOWORK=off go test ./...

.PHONY: verify
verify: programs ## Run the long checks, each a row of docs/verification.md (hours).
	@CARGO="$(CARGO)" scripts/verify

.PHONY: schemathesis
schemathesis: kube ## Ask a real server everything that its OpenAPI document allows, and much that it does not.
	@scripts/need python:$(SCHEMATHESIS)
	@$(CARGO) build $(WORKSPACE) --bins
	@$(TARGET)/debug/schemathesis $(TOOLS)/schemathesis/bin/schemathesis $(EXAMPLES)

.PHONY: conformance
conformance: kube ## Run Kubernetes' own suite: directly, through the gateway, and (as root) on the lab; about half an hour.
	@kube/build conformance >/dev/null
	@$(CARGO) build $(WORKSPACE) --bins
	@$(TARGET)/debug/conformance local-direct
	@$(TARGET)/debug/conformance local
	@if [ "$$(id -u)" = 0 ]; then $(MAKE) lab-programs && $(TARGET)/debug/conformance lab; \
		else echo "skipped: needs root: the same on the lab"; fi

# Time for each property; `make fuzz SECONDS=60` for a quick look.
SECONDS := 1200
.PHONY: fuzz
fuzz: $(TOOLS)/bin/cargo-fuzz ## Look for inputs that break a property, 20 minutes each; SECONDS=60 NAME="token path" for less.
	@PATH="$(TOOLS)/bin:$$PATH" scripts/fuzz $(SECONDS) $(NAME)

.PHONY: bench
bench: bench-programs ## Measure all figures (about 15 minutes once built), or ID=gateway_latency,cli_start alone.
	@CARGO="$(CARGO)" $(TARGET)/release/bench $(ID)

.PHONY: bench-long
bench-long: bench-programs ## Measure what needs a machine of its own: a hundred environments at once.
	@CARGO="$(CARGO)" $(TARGET)/release/bench --long local_many_start

.PHONY: bench-docs
bench-docs: ## Put the table of the last figures into docs/benchmarks.md.
	@$(TARGET)/release/bench --markdown docs/benchmarks.md

.PHONY: bench-programs
bench-programs:
	@echo "bench: upstream's programs, the stock pair and the baseline (first time about 14 minutes on 2 cores, then seconds)"
	@kube/build etcd kubler-control-plane template kubectl buildkite-agent stock baseline >/dev/null
	@echo "bench: everything optimised (first time about 25 minutes on 2 cores, then seconds)"
	@$(CARGO) build $(WORKSPACE) --release --bins
	@$(CARGO) bench $(WORKSPACE) --bench ledger_append --no-run
	@$(CARGO) build --locked --profile dist --package kubler-cli

# Architectures of the command; aarch64 as well with STATIC="x86_64 aarch64". The server is built for this machine's.
STATIC := x86_64
.PHONY: dist
dist: ## Make what is released, in dist/: the static command, the server's archive, checksums, bill of materials.
	@scripts/need jq
	@kube/build etcd kubler-control-plane template >/dev/null
	@echo "dist: the server, optimised (first time about 25 minutes on 2 cores, then seconds)"
	@$(CARGO) build $(WORKSPACE) --release --bins
	@commands=""; for arch in $(STATIC); do \
		commands="$$commands $$arch=$$(scripts/build-static $$arch $(TOOLS))"; done; \
	scripts/dist dist $(TARGET)/release/kubler-server "$$commands"

.PHONY: dist-check
dist-check: programs ## Try what `make dist` made: in a root with nothing but busybox, and as a service.
	@scripts/need busybox:busybox-static curl
	@CARGO="$(CARGO)" scripts/dist-check dist

.PHONY: programs
programs: kube
	@scripts/need shellcheck
	@# Tests that need a node say that they are skipped where nobody is root.
	@test "$$(id -u)" != 0 || $(MAKE) lab-programs
	@echo "build: all programs and tests (first time about 10 minutes on 2 cores, then seconds)"
	@$(CARGO) build $(WORKSPACE) --bins --tests

.PHONY: kube
kube:
	@kube/build >/dev/null

.PHONY: check
check: check-format check-clippy check-docs check-shell check-go check-dependencies ## Check format, lints, documents, scripts, licences and dependencies.
	@echo "check: all well"

.PHONY: check-format
check-format:
	@$(CARGO) fmt --all --check
	@test -z "$$(gofmt -l kube/kubernetes kube/etcd kube/baseline)" || { gofmt -d kube/kubernetes kube/etcd kube/baseline; exit 1; }

.PHONY: check-clippy
check-clippy:
	@$(CARGO) clippy $(WORKSPACE) --all-targets -- -D warnings

.PHONY: check-docs
check-docs:
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(WORKSPACE) --no-deps --quiet

.PHONY: check-shell
check-shell:
	@scripts/need shellcheck
	@shellcheck scripts/* .ci/run plugins/buildkite/hooks/*
	@shellcheck --exclude=SC1007,SC2010,SC2046 kube/build

.PHONY: check-go
check-go: kube
	@$(GO_ENV) go vet ./...
	@cd kube/baseline && GOWORK=off CGO_ENABLED=0 go vet ./...

.PHONY: check-dependencies
check-dependencies: $(TOOLS)/bin/cargo-deny $(TOOLS)/bin/cargo-machete
	@$(TOOLS)/bin/cargo-deny --log-level error check bans licenses sources
	@$(TOOLS)/bin/cargo-machete --skip-target-dir .

$(TOOLS)/bin/cargo-deny:
	@echo "check: installing cargo-deny once (about 5 minutes)"
	@CARGO_TARGET_DIR=$(TOOLS)/target $(CARGO) install --quiet --locked --root $(TOOLS) cargo-deny@0.20.2

$(TOOLS)/bin/cargo-machete:
	@echo "check: installing cargo-machete once (about 1 minute)"
	@CARGO_TARGET_DIR=$(TOOLS)/target $(CARGO) install --quiet --locked --root $(TOOLS) cargo-machete@0.9.1

$(TOOLS)/bin/cargo-fuzz:
	@echo "fuzz: installing cargo-fuzz once (about 2 minutes)"
	@CARGO_TARGET_DIR=$(TOOLS)/target $(CARGO) install --quiet --locked --root $(TOOLS) cargo-fuzz@0.13.2

.PHONY: reference
reference: ## Rewrite docs/reference from what the programs know (build them first).
	@for page in configuration environment-variables errors ledger-actions metrics; do \
		$(TARGET)/debug/kubler-server reference $$page >docs/reference/$$page.md; done
	@$(TARGET)/debug/kubler-server schema >docs/reference/kubler.schema.json
	@$(TARGET)/debug/kubler-server openapi >docs/reference/openapi.json
	@$(TARGET)/debug/kubler reference >docs/reference/kubler.md

.PHONY: clean
clean: ## Remove what was built here; the shared cache stays.
	@$(CARGO) clean
