//! What the ledger says about each job, line by line as it is written.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kubler_testkit::kubler::Server;
use reqwest::Method;
use serde_json::Value;

use crate::jobs::{Running, Way};
use crate::say;

/// Records that are read at once.
const PAGE: usize = 200;

/// Lines so far.
pub(crate) struct Timeline {
    begun: Timestamp,
    ways: BTreeMap<String, Way>,
    environments: BTreeMap<String, Way>,
    next: u64,
    asked: Vec<Way>,
    first_answer: Vec<Way>,
    ended: Vec<Way>,
    gone: Vec<Way>,
}

impl Timeline {
    pub(crate) fn new(running: &[Running]) -> Self {
        #[allow(
            clippy::disallowed_methods,
            reason = "a demonstration looks at the clock"
        )]
        let begun = Timestamp::now();
        let ways = running
            .iter()
            .map(|one| (one.job.id().to_string(), one.way))
            .collect();
        Self {
            begun,
            ways,
            environments: BTreeMap::new(),
            next: 0,
            asked: Vec::new(),
            first_answer: Vec::new(),
            ended: Vec::new(),
            gone: Vec::new(),
        }
    }

    pub(crate) fn is_gone(&self, way: Way) -> bool {
        self.gone.contains(&way)
    }

    /// Something that the demo itself does.
    pub(crate) fn note(&self, way: Way, text: &str) {
        #[allow(
            clippy::disallowed_methods,
            reason = "a demonstration looks at the clock"
        )]
        self.line(Timestamp::now(), way, text);
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
            let timeline = one.job.timeline();
            if let Some(ended) = timeline.ended
                && !self.ended.contains(&one.way)
            {
                self.ended.push(one.way);
                let exit = one.job.exit_status().map_or_else(
                    || "no exit status".into(),
                    |code| format!("exit status {code}"),
                );
                self.line(
                    ended,
                    one.way,
                    &format!("job ended: {}, {exit}", one.job.state().as_str()),
                );
            }
        }
    }

    fn show(&mut self, record: &Value) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let environment = text(&record["environment_id"]);
        if let Some(way) = self
            .ways
            .get(record["identity"]["job"]["id"].as_str().unwrap_or_default())
            && !environment.is_empty()
        {
            self.environments.insert(environment.clone(), *way);
        }
        let by_job = self
            .ways
            .get(record["identity"]["job"]["id"].as_str().unwrap_or_default());
        let Some(way) = by_job
            .or_else(|| self.environments.get(&environment))
            .copied()
        else {
            return;
        };
        let Ok(at) = text(&record["at"]).parse::<Timestamp>() else {
            return;
        };
        match (
            text(&record["action"]).as_str(),
            text(&record["kind"]).as_str(),
        ) {
            ("environment.create", "start") if !self.asked.contains(&way) => self.line(
                at,
                way,
                &format!(
                    "token verified: job {}",
                    text(&record["identity"]["job"]["id"])
                ),
            ),
            ("environment.create", "end") if !self.asked.contains(&way) => {
                self.asked.push(way);
                let policies = record["decision"]["policies"].to_string();
                self.line(
                    at,
                    way,
                    &format!(
                        "policy: {} by {policies}",
                        text(&record["decision"]["effect"])
                    ),
                );
            }
            ("environment.phase", _) => self.phase(at, way, record),
            ("kubernetes.request", "end")
                if record["outcome"]["status"] == 200 && !self.first_answer.contains(&way) =>
            {
                self.first_answer.push(way);
                self.line(at, way, "first kubectl answer");
            }
            _ => {}
        }
    }

    fn phase(&mut self, at: Timestamp, way: Way, record: &Value) {
        match record["phase"]["to"].as_str().unwrap_or_default() {
            "ready" => self.line(at, way, "cluster ready"),
            "releasing" => {
                let why = record["phase"]["message"].as_str().unwrap_or_default();
                self.line(at, way, &format!("credential dead: {why}"));
            }
            "gone" => {
                self.gone.push(way);
                let looked_for = record["details"]["looked_for"].to_string().replace('"', "");
                self.line(at, way, &format!("gone and verified: no {looked_for}"));
            }
            "failed" => self.line(at, way, &format!("failed: {}", record["phase"]["message"])),
            _ => {}
        }
    }

    fn line(&self, at: Timestamp, way: Way, text: &str) {
        let seconds = at.duration_since(self.begun).as_secs_f64();
        say(&format!("{seconds:7.2} s  {:<13} {text}", way.name()));
    }
}
