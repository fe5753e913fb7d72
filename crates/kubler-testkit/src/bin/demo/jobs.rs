//! The five jobs: what they run, how they end, and what must hold for each.

use std::path::Path;
use std::time::{Duration, Instant};

use kubler_testkit::agent::{GitRepository, RealAgent, kube_folder};
use kubler_testkit::buildkite::{Build, Buildkite, Job};
use kubler_testkit::kubler::Server;
use serde_json::json;

use crate::Faults;
use crate::timeline::Timeline;

/// How long all jobs and ends may take.
const BOUND: Duration = Duration::from_secs(90);

/// How a job shall end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

    fn command(self, saved: &Path) -> String {
        let saved = saved.display();
        match self {
            Self::Passes => format!(
                "cat > objects.yaml <<'YAML'\n{OBJECTS}\nYAML\n{PASSES}\ncp \"$KUBECONFIG\" {saved}/kubeconfig\n"
            ),
            Self::Fails => {
                "kubectl create namespace broken; kubectl get pod nothing-of-this-name || exit 7"
                    .into()
            }
            Self::IsCancelled | Self::LosesItsAgent | Self::LosesEverything => {
                "kubectl create namespace busy && kubectl get namespaces\necho wait''ing; sleep 300"
                    .into()
            }
        }
    }
}

const PASSES: &str = r"set -e
kubectl apply -f objects.yaml --server-side
kubectl wait --for=condition=Established crd/reports.demo.example --timeout=10s
kubectl apply -f - <<'YAML'
apiVersion: demo.example/v1
kind: Report
metadata: {name: first, namespace: shop}
spec: {text: read back through the gateway}
YAML
kubectl get namespace,deployment,role,rolebinding,report --namespace shop
kubectl get report first --namespace shop --output jsonpath='{.spec.text}'
test $(kubectl get replicasets --namespace shop --output name --watch-only=false | wc -l) -ge 0";

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
    saved: &Path,
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
pub(crate) async fn see_through(
    running: &mut [Running],
    server: &Server,
    timeline: &mut Timeline,
    faults: &mut Faults,
) {
    let deadline = Instant::now() + BOUND;
    loop {
        timeline.read(server, running).await;
        for one in running
            .iter_mut()
            .filter(|one| !one.struck && one.job.log().contains("waiting"))
        {
            one.struck = true;
            one.strike(timeline);
        }
        let over = running
            .iter()
            .all(|one| one.job.state().is_over() && timeline.is_gone(one.way));
        if over || Instant::now() > deadline {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    timeline.read(server, running).await;
    for one in running.iter() {
        one.check(timeline, faults);
    }
}

impl Running {
    fn strike(&mut self, timeline: &mut Timeline) {
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
        let name = self.way.name();
        let mut hold = |holds: bool, what: &str| {
            if !holds {
                faults.push(format!(
                    "{name}: {what}\n--- job log\n{}\n--- agent\n{}",
                    self.job.log(),
                    self.agent.output()
                ));
            }
        };
        hold(
            timeline.is_gone(self.way),
            "its environment is not verified gone",
        );
        let exit = self.job.exit_status();
        match self.way {
            Way::Passes => hold(
                exit == Some(0) && self.job.log().contains("read back through the gateway"),
                "the job did not pass",
            ),
            Way::Fails => hold(exit == Some(7), "the job did not fail with its own code"),
            Way::IsCancelled | Way::LosesItsAgent | Way::LosesEverything => {
                hold(self.job.state().is_over(), "the job is not over")
            }
        }
    }
}
