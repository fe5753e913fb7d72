//! The server is killed again and again at moments that chance chooses, while jobs create, use, renew and release.
//! What no crash point was thought of is found here, or nowhere.

use std::fmt::Debug;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kubler_testkit::buildkite::{Build, Buildkite, Job, OidcRequest};
use kubler_testkit::kubler::Server;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::aftermath::{is_told, leaves_nothing, made_for, nothing_is_left};

/// Kills of a long run, and of the sample.
const KILLS: usize = 200;
const KILLS_SAMPLE: usize = 12;
/// Jobs at once.
const JOBS: usize = 3;
/// Longest time between two kills, in milliseconds: an environment can be made in it. Most times are far shorter.
const LIFE_MILLISECONDS_MAX: f64 = 5000.0;
/// How long a caller goes on asking, with many kills between.
const PATIENCE: Duration = Duration::from_secs(300);
/// Wait between two tries, as a patient client has one.
const RETRY: Duration = Duration::from_millis(50);

#[tokio::test(flavor = "multi_thread")]
async fn l9_killed_at_random_it_goes_on_where_it_was() {
    run(KILLS_SAMPLE).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: `make verify` runs it"]
async fn l9_killed_at_any_moment_it_goes_on_where_it_was() {
    run(from_environment("KUBLER_TEST_KILLS").unwrap_or(KILLS)).await;
}

async fn run(kills: usize) {
    let seed = from_environment("KUBLER_TEST_SEED").unwrap_or_else(any_seed);
    println!("seed {seed}: `KUBLER_TEST_SEED={seed}` chooses the same moments again");
    let mut chance = Chance(seed);
    let buildkite = Buildkite::start();
    let mut server = Server::of(&buildkite).start().await;
    let build = buildkite.build("app").start();
    let is_over = Arc::new(AtomicBool::new(false));
    let waits = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..JOBS {
        let caller = Caller {
            client: server.client().clone(),
            url: server.url().to_owned(),
            build: build.clone(),
            is_over: Arc::clone(&is_over),
            unanswered: Arc::clone(&waits),
            chance: Chance(chance.next()),
        };
        callers.spawn(caller.live());
    }
    for _ in 0..kills {
        let life = chance.fraction().powi(3) * LIFE_MILLISECONDS_MAX;
        tokio::time::sleep(Duration::from_secs_f64(life / 1e3)).await; // the moment of the kill, not a wait
        server.kill().await;
        server.launch(&[]);
        // Half of the time it is killed again while it starts.
        if chance.fraction() < 0.5 {
            server.wait_until_it_answers().await;
        }
    }
    server.wait_until_it_answers().await;
    is_over.store(true, Ordering::Relaxed);
    let mut count = 0;
    while let Some(lived) = callers.join_next().await {
        for (job, id) in lived.unwrap() {
            assert_eq!(made_for(&server, &job).await, [id.as_str()]);
            nothing_is_left(&server, &id).await;
            is_told(&server, &job, &id).await;
            count += 1;
        }
    }
    leaves_nothing(server).await;
    println!(
        "verified: {kills} kills, seed {seed}; {count} environments came and went, {} requests got no answer",
        waits.load(Ordering::Relaxed)
    );
}

/// A job that tries again until it is answered, as `kubler` does.
struct Caller {
    client: Client,
    url: String,
    build: Build,
    is_over: Arc<AtomicBool>,
    unanswered: Arc<AtomicUsize>,
    chance: Chance,
}

impl Caller {
    /// One environment after the other; gives all of them.
    async fn live(mut self) -> Vec<(Job, String)> {
        let mut lived = Vec::new();
        while !self.is_over.load(Ordering::Relaxed) {
            let job = self.build.job("test").run();
            let id = self.one(&job).await;
            lived.push((job, id));
        }
        lived
    }

    async fn one(&mut self, job: &Job) -> String {
        let body = json!({ "profile": "ci-small", "name": "main", "wait_seconds": 60 });
        let mut id = None;
        loop {
            let made = self.post(job, "/v1/environments", &body).await;
            let known = id.get_or_insert_with(|| made["id"].clone());
            assert_eq!(made["id"], *known, "a retry made another environment");
            match made["phase"].as_str() {
                Some("ready") => break,
                Some("requested" | "provisioning") => {}
                _ => panic!("it ended before anybody wanted it to: {made}"),
            }
        }
        let id = id.as_ref().and_then(Value::as_str).unwrap().to_owned();
        let session = self.session(job, &id).await;
        let uses = self.chance.next() % 4;
        for _ in 0..uses {
            self.read(&id, &session).await;
            let renew = format!("/v1/environments/{id}/renew");
            let renewed = self.post(job, &renew, &Value::Null).await;
            assert_eq!(renewed["phase"], "ready", "{renewed}");
        }
        let release = format!("/v1/environments/{id}/release");
        while self
            .post(job, &release, &json!({ "wait_seconds": 60 }))
            .await["phase"]
            != "gone"
        {}
        id
    }

    /// The answer to a POST, however often it must be asked.
    async fn post(&self, job: &Job, path: &str, body: &Value) -> Value {
        let request = |token: String| {
            let request = self
                .client
                .post(format!("{}{path}", self.url))
                .bearer_auth(token);
            match body {
                Value::Null => request,
                body => request.json(body),
            }
        };
        self.answered(job, request).await
    }

    async fn session(&self, job: &Job, id: &str) -> String {
        let exchange = |token: String| {
            let form = [
                (
                    "grant_type",
                    "urn:ietf:params:oauth:grant-type:token-exchange",
                ),
                ("subject_token", &token),
                ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
                ("resource", id),
            ];
            self.client
                .post(format!("{}/v1/token", self.url))
                .form(&form)
        };
        let issued = self.answered(job, exchange).await;
        issued["access_token"].as_str().unwrap().to_owned()
    }

    async fn read(&self, id: &str, session: &str) {
        let url = format!("{}/k8s/{id}/api/v1/namespaces", self.url);
        let request = |_| self.client.get(&url).bearer_auth(session);
        self.until_answered(request, String::new).await;
    }

    async fn answered(
        &self,
        job: &Job,
        request: impl Fn(String) -> reqwest::RequestBuilder,
    ) -> Value {
        let token = || job.oidc_token(&OidcRequest::for_kubler(&self.url)).unwrap();
        self.until_answered(request, token).await
    }

    /// Only "no answer" is tried again: a server that answers answers well.
    async fn until_answered(
        &self,
        request: impl Fn(String) -> reqwest::RequestBuilder,
        token: impl Fn() -> String,
    ) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(answer) = request(token()).send().await {
                let status = answer.status();
                if let Ok(body) = answer.json::<Value>().await {
                    assert_eq!(status, StatusCode::OK, "{body}");
                    return body;
                }
            }
            self.unanswered.fetch_add(1, Ordering::Relaxed);
            assert!(Instant::now() < deadline, "no answer in {PATIENCE:?}");
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// The same numbers for the same seed (SplitMix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to 1.
    #[allow(clippy::cast_precision_loss, reason = "chance needs no more digits")]
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn any_seed() -> u64 {
    let nanoseconds = jiff::Timestamp::now().as_nanosecond();
    u64::try_from(nanoseconds.rem_euclid(1_000_000_000)).unwrap()
}

fn from_environment<T: FromStr<Err: Debug>>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap())
}
