//! The five jobs: what they run, how they end, and what must hold for each.

use std::process::Output;
use std::time::{Duration, Instant};

use kubler_testkit::agent::{GitRepository, RealAgent, kube_folder};
use kubler_testkit::buildkite::{Build, Buildkite, Job, JobState};
use kubler_testkit::kubler::Server;
use serde_json::json;

use crate::Faults;
use crate::saved::{Keeps, Saved};
use crate::timeline::{Milestone, Timeline};
use crate::traces::Traces;

/// How long all jobs and ends may take.
const BOUND: Duration = Duration::from_secs(90);

/// How a job shall end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    Passes,
    Fails,
    IsCancelled,
    LosesItsAgent,
    LosesEverything,
}

impl Way {
    pub(crate) const ALL: [Self; 5] = [
        Self::Passes,
        Self::Fails,
        Self::IsCancelled,
        Self::LosesItsAgent,
        Self::LosesEverything,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Passes => "passes",
            Self::Fails => "fails",
            Self::IsCancelled => "cancelled",
            Self::LosesItsAgent => "agent-killed",
            Self::LosesEverything => "all-killed",
        }
    }

    fn command(self, saved: &Saved) -> String {
        let save = saved.command(self);
        match self {
            Self::Passes => {
                format!(
                    "cat > objects.yaml <<'YAML'\n{OBJECTS}\nYAML\n{PASSES}\n{FRESH_SESSION}\n{save}"
                )
            }
            Self::Fails => format!(
                "kubectl create namespace broken\n{save}\nkubectl get pod nothing-of-this-name || exit 7"
            ),
            Self::IsCancelled | Self::LosesItsAgent | Self::LosesEverything => format!(
                "kubectl create namespace busy\nkubectl get namespaces\n{save}\necho wait''ing\nsleep 300"
            ),
        }
    }

    /// Why its environment shall end. Whoever loses all its processes has nobody left to say so.
    const fn end(self) -> &'static str {
        match self {
            Self::Passes | Self::Fails | Self::IsCancelled | Self::LosesItsAgent => "released",
            Self::LosesEverything => "lapsed",
        }
    }
}

const PASSES: &str = r#"set -e
kubectl apply -f objects.yaml --server-side
kubectl wait --for=condition=Established crd/reports.demo.example --timeout=10s
kubectl apply -f - <<'YAML'
apiVersion: demo.example/v1
kind: Report
metadata: {name: first, namespace: shop}
spec: {text: read back through the gateway}
YAML
kubectl wait deployment/web --namespace shop --for=condition=Progressing --timeout=20s
kubectl get namespace,deployment,replicaset,role,rolebinding,report --namespace shop
same() {
  read_back=$(kubectl get "$1" --namespace shop --output jsonpath="$2")
  test "$read_back" = "$3" || { echo "$1 has $read_back, not $3"; return 1; }
  echo "$1 is as applied: $read_back"
}
same report/first '{.spec.text}' 'read back through the gateway'
same namespace/shop '{.status.phase}' Active
same role/reader '{.rules[0].apiGroups[0]}/{.rules[0].resources[0]}' demo.example/reports
same rolebinding/readers '{.roleRef.name} to {.subjects[0].name}' 'reader to default'
same deployment/web '{.spec.template.spec.containers[0].image}' registry.example/web:1
same replicasets '{.items[*].metadata.ownerReferences[0].name} {.items[*].spec.replicas}' 'web 2'"#;

/// What the job says only when the value that it read back was the one that it had applied.
const READ_BACK: [&str; 6] = [
    "report/first is as applied: read back through the gateway",
    "namespace/shop is as applied: Active",
    "role/reader is as applied: demo.example/reports",
    "rolebinding/readers is as applied: reader to default",
    "deployment/web is as applied: registry.example/web:1",
    "replicasets is as applied: web 2",
];

/// A session that lives for a while after the job.
const FRESH_SESSION: &str = r#"rm "${KUBECONFIG%/*}"/*.session
kubectl get namespaces --output name"#;

const OBJECTS: &str = r"apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: reports.demo.example}
spec:
  group: demo.example
  scope: Namespaced
  names: {kind: Report, plural: reports, singular: report}
  versions:
    - name: v1
      served: true
      storage: true
      schema:
        openAPIV3Schema:
          type: object
          properties: {spec: {type: object, properties: {text: {type: string}}}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: shop}
rules: [{apiGroups: [demo.example], resources: [reports], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: readers, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: default, namespace: shop}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: registry.example/web:1}]}";

/// One job with its agent.
pub(crate) struct Running {
    pub(crate) way: Way,
    pub(crate) job: Job,
    pub(crate) build: Build,
    agent: RealAgent,
    struck: bool,
}

/// Makes the build and starts an agent for each of its jobs.
pub(crate) fn start(
    buildkite: &Buildkite,
    server: &Server,
    plugin: &GitRepository,
    saved: &Saved,
    traces: &Traces,
) -> Vec<Running> {
    let build = buildkite
        .build("web")
        .branch("main")
        .commit("5f0c2d9e8b7a6c5d4e3f2a1b0c9d8e7f6a5b4c3d")
        .start();
    let configuration = json!({ "server": server.url(), "profile": "ci-small", "ca": server.ca() });
    let start = |way: Way| {
        let draft = build
            .job(way.name())
            .command(&way.command(saved))
            .plugin(&plugin.plugin_reference(), configuration.clone());
        let job = draft.create();
        let agent = RealAgent::of(buildkite)
            .acquires(&job)
            .path_before(&kube_folder())
            .path_before(server.programs().folder())
            .start();
        traces.note(agent.folder());
        Running {
            way,
            job,
            build: build.clone(),
            agent,
            struck: false,
        }
    };
    Way::ALL.into_iter().map(start).collect()
}

/// Waits for every job's end and every environment's, striking those that shall be struck while they use their cluster.
/// Returns what kubectl said with the kubeconfig and the session of the job that passed, right after its end.
pub(crate) async fn see_through(
    running: &mut [Running],
    server: &Server,
    saved: &Saved,
    timeline: &mut Timeline,
    faults: &mut Faults,
) -> Option<Output> {
    let deadline = Instant::now() + BOUND;
    let mut late = None;
    loop {
        timeline.read(server, running).await;
        timeline.try_credentials(server, saved, running).await;
        for one in running.iter_mut() {
            one.strike_when_busy(timeline);
            if one.way == Way::Passes
                && late.is_none()
                && timeline.has(one.way, Milestone::CredentialDead)
            {
                late = saved.late_kubectl(server, one.way, &one.job, Keeps::Session);
            }
        }
        let is_over = |way| Milestone::ALL.iter().all(|one| timeline.has(way, *one));
        let over = Way::ALL.into_iter().all(is_over);
        if over || Instant::now() > deadline {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for one in running.iter() {
        one.check(timeline, faults);
    }
    late
}

impl Running {
    fn strike_when_busy(&mut self, timeline: &mut Timeline) {
        if self.struck || !self.job.log().contains("waiting") {
            return;
        }
        self.struck = true;
        match self.way {
            Way::IsCancelled => {
                timeline.note(self.way, "a person cancels the job");
                self.job.cancel();
            }
            Way::LosesItsAgent => {
                timeline.note(self.way, "SIGKILL to the agent alone");
                self.agent.kill();
            }
            Way::LosesEverything => {
                timeline.note(self.way, "SIGKILL to the agent and all its children");
                self.agent.kill_with_children();
            }
            Way::Passes | Way::Fails => {}
        }
    }

    fn check(&self, timeline: &Timeline, faults: &mut Faults) {
        let mut missing: Vec<String> = Milestone::ALL
            .into_iter()
            .filter(|milestone| !timeline.has(self.way, *milestone))
            .map(|milestone| format!("no {}", milestone.name()))
            .collect();
        let (end, wanted) = (timeline.end(self.way), self.way.end());
        if end != Some(wanted) {
            missing.push(format!("its environment ended as {end:?}, not `{wanted}`"));
        }
        let (state, exit) = (self.job.state(), self.job.exit_status());
        let is_lost = self.job.timeline().agent_lost.is_some();
        let ended_as_meant = match self.way {
            Way::Passes => exit == Some(0),
            Way::Fails => exit == Some(7),
            Way::IsCancelled => state == JobState::Canceled,
            Way::LosesItsAgent | Way::LosesEverything => is_lost,
        };
        if !ended_as_meant {
            missing.push(format!("the job is {state} with exit status {exit:?}"));
        }
        if self.way == Way::Passes {
            let log = self.job.log();
            let unread = READ_BACK.into_iter().filter(|line| !log.contains(line));
            missing.extend(unread.map(|line| format!("no `{line}` in its log")));
        }
        if !missing.is_empty() {
            faults.push(format!(
                "{}: {}\n--- job log\n{}\n--- agent\n{}",
                self.way.name(),
                missing.join("; "),
                self.job.log(),
                self.agent.output()
            ));
        }
    }
}
