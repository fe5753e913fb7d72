//! An address that takes each checkpoint by POST, and may tell the latest by GET.

use std::path::{Path, PathBuf};

use kubler_core::configuration::Sink as SinkSettings;
use reqwest::{Certificate, Client, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};

use super::{NOTE_BYTES_MAX, TRY_TIMEOUT};
use crate::outgoing;

pub(super) struct UrlSink {
    url: String,
    client: Client,
    token_file: Option<PathBuf>,
}

impl UrlSink {
    pub(super) fn new(url: &str, settings: &SinkSettings, folder: &Path) -> Result<Self, String> {
        let mut builder = outgoing::client(TRY_TIMEOUT);
        if let Some(ca) = &settings.ca {
            let pem = std::fs::read(folder.join(ca))
                .map_err(|error| format!("`{ca}` cannot be read: {error}"))?;
            let certificates = Certificate::from_pem_bundle(&pem)
                .map_err(|error| format!("`{ca}` is no certificate: {error}"))?;
            if certificates.is_empty() {
                return Err(format!("`{ca}` has no certificate"));
            }
            builder = builder.tls_certs_only(certificates);
        }
        Ok(Self {
            url: url.to_owned(),
            client: builder.build().map_err(|error| error.to_string())?,
            token_file: settings.token_file.as_ref().map(|file| folder.join(file)),
        })
    }

    /// What it was given last, when it can tell.
    pub(super) async fn read(&self) -> Option<String> {
        match self.ask().await {
            Ok(note) => note,
            Err(message) => {
                tracing::warn!(
                    sink = self.url,
                    message,
                    "a sink does not tell what it was given; the ledger is not compared with it"
                );
                None
            }
        }
    }

    async fn ask(&self) -> Result<Option<String>, String> {
        let mut answer = self.sent(self.client.get(&self.url)).await?;
        if answer.status() != StatusCode::OK {
            return match answer.status() {
                // It has none yet, or only takes.
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NO_CONTENT => {
                    Ok(None)
                }
                other => Err(format!("it answered {other}")),
            };
        }
        let mut note = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            note.extend_from_slice(&chunk);
            if note.len() as u64 > NOTE_BYTES_MAX {
                return Err("its answer is too long for a checkpoint".into());
            }
        }
        let note = String::from_utf8(note).map_err(|_| "its answer is not text")?;
        Ok(Some(note).filter(|note| !note.trim().is_empty()))
    }

    /// Gives it a note.
    pub(super) async fn give(&self, note: &str) -> Result<(), String> {
        let request = self
            .client
            .post(&self.url)
            .header("content-type", "text/plain; charset=utf-8")
            .body(note.to_owned());
        let status = self.sent(request).await?.status();
        if status.is_success() {
            Ok(())
        } else {
            Err(format!("it answered {status}"))
        }
    }

    async fn sent(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, String> {
        let request = match &self.token_file {
            Some(file) => request.bearer_auth(token(file)?.expose_secret()),
            None => request,
        };
        request.send().await.map_err(failed)
    }
}

/// Read anew each time, so that it can be replaced while the server runs.
fn token(file: &Path) -> Result<SecretString, String> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("`{}` cannot be read: {error}", file.display()))?;
    let token = text.trim();
    if token.is_empty() {
        return Err(format!("`{}` holds no token", file.display()));
    }
    Ok(SecretString::from(token))
}

fn failed(error: reqwest::Error) -> String {
    if error.is_timeout() {
        "it did not answer in time".into()
    } else {
        format!("it cannot be reached: {}", error.without_url())
    }
}
