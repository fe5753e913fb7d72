//! What the ledger says about each job, line by line as it is written, and what the gateway answers to its credential.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use kubler_testkit::kubler::Server;
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::jobs::{Running, Way};
use crate::saved::Saved;
use crate::say;

/// Records that are read at once.
const PAGE: usize = 200;

/// What is shown of each job. One that is missing at the end is a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Milestone {
    TokenVerified,
    Decided,
    Ready,
    FirstAnswer,
    JobEnded,
    CredentialDead,
    Gone,
}

impl Milestone {
    pub(crate) const ALL: [Self; 7] = [
        Self::TokenVerified,
        Self::Decided,
        Self::Ready,
        Self::FirstAnswer,
        Self::JobEnded,
        Self::CredentialDead,
        Self::Gone,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::TokenVerified => "token verified",
            Self::Decided => "policy decision with its reason",
            Self::Ready => "cluster ready",
            Self::FirstAnswer => "first kubectl answer",
            Self::JobEnded => "job end",
            Self::CredentialDead => "credential dead",
            Self::Gone => "gone and verified",
        }
    }
}

/// Lines so far.
pub(crate) struct Timeline {
    begun: Timestamp,
    ways: BTreeMap<String, Way>,
    environments: BTreeMap<String, Way>,
    next: u64,
    reached: BTreeSet<(Way, Milestone)>,
    /// Requests of kubectl that are under way, by the sequence of their first record.
    asked: BTreeMap<u64, Way>,
    /// Why environments ended: the stable code.
    ends: BTreeMap<Way, String>,
}

impl Timeline {
    pub(crate) fn new(running: &[Running]) -> Self {
        let ways = running
            .iter()
            .map(|one| (one.job.id().to_string(), one.way))
            .collect();
        Self {
            begun: now(),
            ways,
            environments: BTreeMap::new(),
            next: 0,
            reached: BTreeSet::new(),
            asked: BTreeMap::new(),
            ends: BTreeMap::new(),
        }
    }

    pub(crate) fn has(&self, way: Way, milestone: Milestone) -> bool {
        self.reached.contains(&(way, milestone))
    }

    /// Why the environment of this job ended.
    pub(crate) fn end(&self, way: Way) -> Option<&str> {
        self.ends.get(&way).map(String::as_str)
    }

    /// Something that the demo itself does.
    pub(crate) fn note(&self, way: Way, text: &str) {
        self.line(now(), way, text);
    }

    /// Reads on in the ledger, as an operator.
    pub(crate) async fn read(&mut self, server: &Server, running: &[Running]) {
        loop {
            let path = format!("/v1/ledger/records?from={}&limit={PAGE}", self.next);
            let records = server.operator(Method::GET, &path).await.body;
            let records = records["records"].as_array().cloned().unwrap_or_default();
            for record in &records {
                self.next = record["sequence"].as_u64().unwrap_or(self.next) + 1;
                self.show(record);
            }
            // Reading is recorded as well: a page that is not full was the last one.
            if records.len() < PAGE {
                break;
            }
        }
        for one in running {
            if let Some(ended) = one.job.timeline().ended {
                let exit = one.job.exit_status().map_or_else(
                    || "no exit status".into(),
                    |code| format!("exit status {code}"),
                );
                let text = format!("job ended: {}, {exit}", one.job.state().as_str());
                self.reach(ended, one.way, Milestone::JobEnded, &text);
            }
        }
    }

    /// Tries the session that each job had, until it is refused because its environment ended.
    pub(crate) async fn try_credentials(
        &mut self,
        server: &Server,
        saved: &Saved,
        running: &[Running],
    ) {
        for one in running {
            if self.has(one.way, Milestone::CredentialDead) {
                continue;
            }
            let Some(session) = saved.session(one.way, &one.job) else {
                continue;
            };
            let path = format!("/k8s/{}/api/v1/namespaces", session.environment);
            let answer = server
                .request(Method::GET, &path, Some(&session.token), None)
                .await;
            let is_ended = answer.body["details"]["causes"][0]["reason"] == "EnvironmentEnded";
            if answer.status == StatusCode::NOT_FOUND && is_ended {
                let text = format!("credential dead: its session gets {}", answer.status);
                self.reach(now(), one.way, Milestone::CredentialDead, &text);
            }
        }
    }

    fn show(&mut self, record: &Value) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let environment = text(&record["environment_id"]);
        let job = text(&record["identity"]["job"]["id"]);
        let by_job = self.ways.get(&job).copied();
        if let (Some(way), false) = (by_job, environment.is_empty()) {
            self.environments.insert(environment.clone(), way);
        }
        let way = by_job.or_else(|| self.environments.get(&environment).copied());
        let (Some(way), Ok(at)) = (way, text(&record["at"]).parse::<Timestamp>()) else {
            return;
        };
        match (
            text(&record["action"]).as_str(),
            text(&record["kind"]).as_str(),
        ) {
            ("environment.create", "start") => {
                let text = format!("token verified: job {job}");
                self.reach(at, way, Milestone::TokenVerified, &text);
            }
            ("environment.create", "end") => self.decision(at, way, &record["decision"]),
            ("environment.phase", _) => self.phase(at, way, record),
            ("kubernetes.request", "start") if is_kubectl(&record["request"]) => {
                self.asked.insert(self.next - 1, way);
            }
            ("kubernetes.request", "end") => {
                let asked = record["start"].as_u64();
                let by_kubectl = asked.and_then(|start| self.asked.remove(&start));
                if by_kubectl.is_some() && record["outcome"]["status"] == 200 {
                    self.reach(at, way, Milestone::FirstAnswer, "first kubectl answer");
                }
            }
            _ => {}
        }
    }

    fn decision(&mut self, at: Timestamp, way: Way, decision: &Value) {
        let has_reason = decision["policies"]
            .as_array()
            .is_some_and(|policies| !policies.is_empty());
        if decision["effect"] == "allow" && has_reason {
            let text = format!("policy: allow by {}", decision["policies"]);
            self.reach(at, way, Milestone::Decided, &text);
        }
    }

    fn phase(&mut self, at: Timestamp, way: Way, record: &Value) {
        let phase = &record["phase"];
        match phase["to"].as_str().unwrap_or_default() {
            "ready" => self.reach(at, way, Milestone::Ready, "cluster ready"),
            "releasing" => {
                let code = phase["reason"].as_str().unwrap_or_default();
                self.ends.insert(way, code.to_owned());
                let message = phase["message"].as_str().unwrap_or_default();
                self.line(at, way, &format!("the end begins: {message} ({code})"));
            }
            "gone" => {
                let looked_for = record["details"]["looked_for"].to_string().replace('"', "");
                let text = format!("gone and verified: no {looked_for}");
                self.reach(at, way, Milestone::Gone, &text);
            }
            "failed" => self.line(at, way, &format!("failed: {}", phase["message"])),
            _ => {}
        }
    }

    fn reach(&mut self, at: Timestamp, way: Way, milestone: Milestone, text: &str) {
        if self.reached.insert((way, milestone)) {
            self.line(at, way, text);
        }
    }

    fn line(&self, at: Timestamp, way: Way, text: &str) {
        let seconds = at.duration_since(self.begun).as_secs_f64();
        say(&format!("{seconds:7.2} s  {:<13} {text}", way.name()));
    }
}

/// Not the demo's own try of a session.
fn is_kubectl(request: &Value) -> bool {
    request["user_agent"]
        .as_str()
        .is_some_and(|agent| agent.starts_with("kubectl"))
}

fn now() -> Timestamp {
    #[allow(
        clippy::disallowed_methods,
        reason = "a demonstration looks at the clock"
    )]
    Timestamp::now()
}
