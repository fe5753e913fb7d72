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
# One selection of crates for everything that is run, so that dependencies are built once.
WORKSPACE := --workspace --locked

.PHONY: help
help: ## Show what can be made.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

.PHONY: demo
demo: programs ## Run the main job on real parts: five CI jobs, five clusters, five verified ends.
	@$(TARGET)/debug/demo

.PHONY: test
test: programs ## Run all tests (about 5 minutes once built).
	@echo "test: compiling and running; single-threaded where real clusters are started"
	@$(CARGO) test $(WORKSPACE)
	@cd kube/kubernetes && GOWORK=off go test ./...

.PHONY: programs
programs: kube
	@scripts/need protoc:protobuf-compiler
	@echo "build: kubler-server, kubler and the demo (first time about 10 minutes on 2 cores, then seconds)"
	@$(CARGO) build $(WORKSPACE) --bins --tests

.PHONY: kube
kube:
	@kube/build >/dev/null

.PHONY: check
check: check-format check-clippy check-docs check-reference check-shell check-dependencies check-go ## Check format, lints, docs, licences, references.
	@echo "check: all well"

.PHONY: check-format
check-format:
	@$(CARGO) fmt --all --check
	@test -z "$$(gofmt -l kube/kubernetes kube/etcd)" || { gofmt -d kube/kubernetes kube/etcd; exit 1; }

.PHONY: check-clippy
check-clippy:
	@$(CARGO) clippy $(WORKSPACE) --all-targets -- -D warnings

.PHONY: check-docs
check-docs:
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(WORKSPACE) --no-deps --quiet

.PHONY: check-reference
check-reference: programs
	@scripts/reference --check

.PHONY: reference
reference: programs ## Write the generated reference pages anew.
	@scripts/reference

.PHONY: check-shell
check-shell:
	@scripts/need shellcheck
	@shellcheck scripts/* .ci/run plugins/buildkite/hooks/* kube/build

.PHONY: check-go
check-go: kube
	@cd kube/kubernetes && GOWORK=off go vet ./...

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

.PHONY: bench
bench: kube ## Measure against baselines taken in the same run (ID=... runs one; under 40 minutes).
	@kube/build stock >/dev/null
	@echo "bench: building optimised programs (first time about 15 minutes on 2 cores)"
	@$(CARGO) build $(WORKSPACE) --release --bins
	@$(CARGO) build --locked --profile dist -p kubler-cli
	@$(TARGET)/release/bench $(if $(ID),--id $(ID)) --output $(TARGET)/bench.json

.PHONY: clean
clean: ## Remove what was built here; the shared cache stays.
	@$(CARGO) clean
