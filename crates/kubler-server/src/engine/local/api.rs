//! A small client of one environment's API server: one connection over its socket, many requests at once.

use std::io;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

use crate::engine::Bearer;
use crate::engine::api::{ANSWER_BYTES_MAX, APPLY, Answer, Api, apply_path};

/// A connection to an API server.
#[derive(Debug, Clone)]
pub(super) struct ApiClient {
    requests: SendRequest<Full<Bytes>>,
    authorization: http::HeaderValue,
    _connection: Arc<AbortOnDropHandle<()>>,
}

impl ApiClient {
    /// Connects; waits as long as the server takes connections without serving them.
    pub(super) async fn connect(
        socket: &Path,
        tls: &rustls::ClientConfig,
        server_name: ServerName<'static>,
        token: &Bearer,
    ) -> io::Result<Self> {
        let mut tls = tls.clone();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let stream = UnixStream::connect(socket).await?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(tls))
            .connect(server_name, stream)
            .await?;
        let (requests, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .map_err(io::Error::other)?;
        let connection = tokio::spawn(async move {
            // Its end shows at the next request.
            let _ = connection.await;
        });
        Ok(Self {
            requests,
            authorization: token.header(),
            _connection: Arc::new(AbortOnDropHandle::new(connection)),
        })
    }

    #[cfg(test)]
    pub(super) async fn post(&self, path: &str, object: &Value) -> io::Result<Answer> {
        self.send(http::Method::POST, path, Some(object)).await
    }

    async fn send(
        &self,
        method: http::Method,
        path: &str,
        body: Option<&Value>,
    ) -> io::Result<Answer> {
        let method_is_patch = method == http::Method::PATCH;
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("https://environment{path}"))
            .header(http::header::AUTHORIZATION, &self.authorization)
            .header(http::header::ACCEPT, "application/json");
        if body.is_some() {
            // JSON is YAML; the first type asks for server-side apply.
            let kind = if method_is_patch {
                APPLY
            } else {
                "application/json"
            };
            request = request.header(http::header::CONTENT_TYPE, kind);
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(io::Error::other)?;
        let mut requests = self.requests.clone();
        requests.ready().await.map_err(io::Error::other)?;
        let answer = requests
            .send_request(request)
            .await
            .map_err(io::Error::other)?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(io::Error::other)?;
        Ok(Answer {
            status,
            body: body.to_bytes(),
        })
    }
}

#[async_trait]
impl Api for ApiClient {
    async fn get(&self, path: &str) -> io::Result<Answer> {
        self.send(http::Method::GET, path, None).await
    }

    async fn apply(&self, path: &str, object: &Value) -> io::Result<Answer> {
        self.send(http::Method::PATCH, &apply_path(path), Some(object))
            .await
    }
}
