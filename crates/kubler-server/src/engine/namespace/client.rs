//! Requests to a host cluster: each has a bound on its time, on the server's side too, so that nothing is done after
//! nobody waits for it any more.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt as _, Limited};
use kube::Client;
use kube::client::Body;
use serde_json::Value;

use super::connection::Connection;
use crate::engine::api::{ANSWER_BYTES_MAX, APPLY, Answer, Api, apply_path};
use crate::engine::{Bearer, EngineError};

/// How long the API server may work on one request, in seconds. It gives up by itself then.
const SERVER_SECONDS_MAX: u64 = 10;
/// How long one request may take altogether: longer than the server works on it.
const CALL_MAX: Duration = Duration::from_secs(15);
/// Longest event of a watch, in bytes.
const EVENT_BYTES_MAX: usize = 4 << 20;
/// What a list of objects is asked for when only their metadata matter.
const METADATA_ONLY: &str =
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";

/// Requests as Kubler itself, or as a tenant.
pub(super) struct HostClient<'a> {
    client: &'a Client,
    authorization: Option<HeaderValue>,
    calls: &'a AtomicU64,
}

impl<'a> HostClient<'a> {
    /// As Kubler itself.
    pub(super) const fn own(connection: &'a Connection, calls: &'a AtomicU64) -> Self {
        Self {
            client: &connection.own,
            authorization: None,
            calls,
        }
    }

    /// As whoever holds `token`.
    pub(super) fn tenant(connection: &'a Connection, token: &Bearer, calls: &'a AtomicU64) -> Self {
        Self {
            client: &connection.bare,
            authorization: Some(token.header()),
            calls,
        }
    }

    /// Reads a list of metadata.
    pub(super) async fn list_metadata(&self, path: &str) -> io::Result<Answer> {
        self.send(Method::GET, path, METADATA_ONLY, None).await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> io::Result<Answer> {
        self.send(Method::POST, path, "application/json", Some(body))
            .await
    }

    pub(super) async fn delete(&self, path: &str, options: &Value) -> io::Result<Answer> {
        self.send(Method::DELETE, path, "application/json", Some(options))
            .await
    }

    /// Server-side apply, with more parameters in the query: `&name=value`.
    pub(super) async fn apply_with(
        &self,
        path: &str,
        object: &Value,
        more: &str,
    ) -> io::Result<Answer> {
        let path = format!("{}{more}", apply_path(path));
        self.send(Method::PATCH, &path, "application/json", Some(object))
            .await
    }

    /// A merge patch.
    pub(super) async fn merge(&self, path: &str, patch: &Value) -> io::Result<Answer> {
        in_time(CALL_MAX, async {
            let path = format!("{path}?timeout={SERVER_SECONDS_MAX}s");
            let request = Request::patch(path)
                .header(header::ACCEPT, "application/json")
                .header(header::CONTENT_TYPE, "application/merge-patch+json")
                .body(Body::from(patch.to_string().into_bytes()))
                .map_err(io::Error::other)?;
            self.calls.fetch_add(1, Ordering::Relaxed);
            read(self.client.send(request).await.map_err(io::Error::other)?).await
        })
        .await
    }

    /// Follows what `path` answers to a watch, for so long at most.
    pub(super) async fn watch(&self, path: &str, bound: Duration) -> io::Result<Events> {
        let and = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{and}watch=true&timeoutSeconds={}", bound.as_secs());
        let answer = self.request(Method::GET, &path, "application/json", None);
        let answer = in_time(CALL_MAX, answer).await?;
        if !answer.status().is_success() {
            return Err(io::Error::other(read(answer).await?.message()));
        }
        Ok(Events {
            body: answer.into_body(),
            held: BytesMut::new(),
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<&Value>,
    ) -> io::Result<Answer> {
        in_time(CALL_MAX, async {
            let and = if path.contains('?') { '&' } else { '?' };
            let path = format!("{path}{and}timeout={SERVER_SECONDS_MAX}s");
            read(self.request(method, &path, accept, body).await?).await
        })
        .await
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<&Value>,
    ) -> io::Result<Response<Body>> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let kind = if method == Method::PATCH {
            APPLY
        } else {
            "application/json"
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::ACCEPT, accept);
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request
            .body(Body::from(body.into_bytes()))
            .map_err(io::Error::other)?;
        self.client.send(request).await.map_err(io::Error::other)
    }
}

#[async_trait]
impl Api for HostClient<'_> {
    async fn get(&self, path: &str) -> io::Result<Answer> {
        self.send(Method::GET, path, "application/json", None).await
    }

    async fn apply(&self, path: &str, object: &Value) -> io::Result<Answer> {
        self.apply_with(path, object, "").await
    }
}

/// What a watch says.
pub(super) struct Events {
    body: Body,
    held: BytesMut,
}

impl Events {
    /// The next event; `None` when the server ends the watch.
    pub(super) async fn next(&mut self) -> io::Result<Option<Value>> {
        loop {
            if let Some(end) = self.held.iter().position(|byte| *byte == b'\n') {
                let line = self.held.split_to(end + 1);
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(io::Error::other);
            }
            if self.held.len() > EVENT_BYTES_MAX {
                return Err(io::Error::other("an event of a watch is too long"));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    let frame = frame.map_err(io::Error::other)?;
                    if let Ok(data) = frame.into_data() {
                        self.held.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

async fn read(answer: Response<Body>) -> io::Result<Answer> {
    let status = answer.status().as_u16();
    let body: Bytes = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await
        .map_err(io::Error::other)?
        .to_bytes();
    Ok(Answer { status, body })
}

async fn in_time<T>(bound: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(bound, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// An answer that must be a success.
pub(super) fn succeeded(what: &str, answer: io::Result<Answer>) -> Result<Answer, EngineError> {
    let answer = answer.map_err(|error| {
        EngineError::transient(format!("{what}: the host does not answer: {error}"))
    })?;
    if answer.is_success() {
        return Ok(answer);
    }
    let message = format!("{what}: the host says: {}", answer.message());
    // Rights may still be on their way to it, and what is ending makes room.
    Err(match answer.status {
        400 | 405 | 406 | 413 | 415 | 422 => EngineError::permanent(message),
        _ => EngineError::transient(message),
    })
}
