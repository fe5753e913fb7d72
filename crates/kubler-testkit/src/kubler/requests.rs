//! What a caller asks of a server: plain requests first, then what tests ask again and again.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{LOOK_INTERVAL, Server};
use crate::buildkite::{Job, OidcRequest};

/// How long a release waits for its end in tests: as long as the API lets it.
const GONE_SECONDS: u64 = 60;

/// An answer: status and JSON (or null).
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// Body.
    pub body: Value,
}

impl Server {
    /// A request with a bearer token (or none).
    ///
    /// # Panics
    /// When no answer comes.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Answer {
        let asked = self.try_request(method, path, token, body).await;
        asked.expect("an answer")
    }

    /// The same to a server that may end meanwhile.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn try_request(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> reqwest::Result<Answer> {
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        try_answer(request).await
    }

    /// A request with the operator's certificate.
    ///
    /// # Panics
    /// When no answer comes.
    pub async fn operator(&self, method: Method, path: &str) -> Answer {
        answer(self.operator.request(method, format!("{}{path}", self.url))).await
    }

    /// The same with a JSON body.
    ///
    /// # Panics
    /// When no answer comes.
    pub async fn operator_with(&self, method: Method, path: &str, body: &Value) -> Answer {
        answer(
            self.operator
                .request(method, format!("{}{path}", self.url))
                .json(body),
        )
        .await
    }

    /// A client that trusts the server's CA, for requests of another kind.
    pub const fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// A fresh token of the job for this server.
    ///
    /// # Panics
    /// When the stand-in refuses, for example since the job has ended.
    pub fn token(&self, job: &Job) -> String {
        job.oidc_token(&OidcRequest::for_kubler(&self.url))
            .unwrap_or_else(|refusal| panic!("no token: {refusal:?}"))
    }

    /// Asks for an environment of profile `ci-small` and waits until it is usable.
    ///
    /// # Panics
    /// When it is refused or does not become usable.
    pub async fn create(&self, job: &Job, name: &str) -> Value {
        let body = json!({ "profile": "ci-small", "name": name, "wait_seconds": 60 });
        let made = self
            .request(
                Method::POST,
                "/v1/environments",
                Some(&self.token(job)),
                Some(&body),
            )
            .await;
        assert!(
            made.status == 200 && made.body["phase"] == "ready",
            "no environment: {made:?}\n{}",
            self.log()
        );
        made.body
    }

    /// Exchanges a fresh token for a session.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn session(&self, job: &Job, id: &str) -> String {
        let issued = self.exchange(&self.token(job), id).await;
        assert_eq!(issued.status, 200, "no session: {issued:?}");
        issued.body["access_token"]
            .as_str()
            .expect("a token")
            .to_owned()
    }

    /// `POST /v1/token` with this identity token.
    ///
    /// # Panics
    /// When no answer comes.
    pub async fn exchange(&self, token: &str, id: &str) -> Answer {
        let exchanged = self.try_exchange(token, id).await;
        exchanged.expect("an answer")
    }

    /// The same with a server that may end meanwhile.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn try_exchange(&self, token: &str, id: &str) -> reqwest::Result<Answer> {
        let form = [
            (
                "grant_type",
                "urn:ietf:params:oauth:grant-type:token-exchange",
            ),
            ("subject_token", token),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
            ("resource", id),
        ];
        let request = self.client.post(format!("{}/v1/token", self.url));
        try_answer(request.form(&form)).await
    }

    /// The environment as an operator sees it.
    ///
    /// # Panics
    /// When there is none.
    pub async fn environment(&self, id: &str) -> Value {
        let read = self
            .operator(Method::GET, &format!("/v1/environments/{id}"))
            .await;
        assert_eq!(read.status, 200, "{read:?}");
        read.body
    }

    /// Waits until the environment satisfies a condition.
    ///
    /// # Panics
    /// With the environment and the log, when it does not within `bound`.
    pub async fn wait_for(
        &self,
        id: &str,
        bound: Duration,
        condition: impl Fn(&Value) -> bool,
    ) -> Value {
        let deadline = Instant::now() + bound;
        loop {
            let environment = self.environment(id).await;
            if condition(&environment) {
                return environment;
            }
            assert!(
                Instant::now() < deadline,
                "still {environment:#}\n{}",
                self.log()
            );
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// An environment `main` of profile `ci-small` that is usable, and a session for it.
    ///
    /// # Panics
    /// As [`Self::create`] and [`Self::session`] do.
    pub async fn create_with_session(&self, job: &Job) -> (String, String) {
        let made = self.create(job, "main").await;
        let id = made["id"].as_str().expect("an id").to_owned();
        let session = self.session(job, &id).await;
        (id, session)
    }

    /// A GET through the gateway: `path` is one of the environment's API.
    ///
    /// # Panics
    /// When no answer comes.
    pub async fn read(&self, id: &str, session: &str, path: &str) -> Answer {
        let path = format!("/k8s/{id}{path}");
        self.request(Method::GET, &path, Some(session), None).await
    }

    /// Whether the session opens the environment: the status of a list of its namespaces.
    ///
    /// # Panics
    /// When no answer comes.
    pub async fn reads(&self, id: &str, session: &str) -> u16 {
        let read = self.read(id, session, "/api/v1/namespaces").await;
        read.status.as_u16()
    }

    /// Renews the environment's lease with a fresh token of the job.
    ///
    /// # Panics
    /// When no answer comes.
    pub async fn renew(&self, job: &Job, id: &str) -> Answer {
        let path = format!("/v1/environments/{id}/renew");
        self.request(Method::POST, &path, Some(&self.token(job)), None)
            .await
    }

    /// Releases the environment, and waits for nothing but the answer.
    ///
    /// # Panics
    /// When no answer comes.
    pub async fn release(&self, job: &Job, id: &str) -> Answer {
        let path = format!("/v1/environments/{id}/release");
        self.request(Method::POST, &path, Some(&self.token(job)), None)
            .await
    }

    /// Releases the environment and waits until it is gone; gives it as it is then.
    ///
    /// # Panics
    /// When it is refused or does not go.
    pub async fn release_and_wait(&self, job: &Job, id: &str) -> Value {
        let path = format!("/v1/environments/{id}/release");
        let body = json!({ "wait_seconds": GONE_SECONDS });
        let token = self.token(job);
        let released = self
            .request(Method::POST, &path, Some(&token), Some(&body))
            .await;
        assert!(
            released.status == 200 && released.body["phase"] == "gone",
            "not gone: {released:?}\n{}",
            self.log()
        );
        released.body
    }

    /// Waits until the environment is gone, whoever ended it; gives it as it is then.
    ///
    /// # Panics
    /// With the environment and the log, when it is not within `bound`.
    pub async fn wait_until_gone(&self, id: &str, bound: Duration) -> Value {
        self.wait_for(id, bound, |environment| environment["phase"] == "gone")
            .await
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Answer {
    try_answer(request).await.expect("an answer")
}

async fn try_answer(request: reqwest::RequestBuilder) -> reqwest::Result<Answer> {
    let response = request.send().await?;
    let status = response.status();
    let text = response.text().await?;
    Ok(Answer {
        status,
        body: serde_json::from_str(&text).unwrap_or(Value::String(text)),
    })
}
