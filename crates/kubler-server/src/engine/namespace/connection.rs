//! How a host cluster is reached: by kube's client as Kubler itself, and by a bare one for whoever brings a token of
//! their own. All of it is read at the start.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::client::ConfigExt as _;
use kube::config::{AuthInfo, Config, KubeConfigOptions, Kubeconfig};
use kubler_core::configuration::Host;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;

use crate::config;
use crate::engine::UpstreamAddress;

/// Longest wait for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Longest wait for a version.
const ANSWER_MAX: Duration = Duration::from_secs(10);
const HTTPS_PORT: u16 = 443;

/// Why a host cannot be reached as it is configured.
#[derive(Debug, thiserror::Error)]
#[error("host `{host}`: {message}")]
pub struct HostError {
    /// Which.
    pub host: String,
    /// What is wrong.
    pub message: String,
}

/// A host cluster's API server.
pub struct Connection {
    /// Requests of Kubler's own.
    pub(super) own: Client,
    /// Requests with a token that is in them; it proves nothing by itself.
    pub(super) bare: Client,
    /// Where it is, for the gateway.
    pub(super) address: UpstreamAddress,
    /// Trust in its certificate, and no certificate of ours: what goes this way is the tenant.
    pub(super) tls: Arc<ClientConfig>,
    /// The name that its certificate carries.
    pub(super) server_name: ServerName<'static>,
}

impl Connection {
    /// Reads the kubeconfig, or what a pod finds in its cluster. Nothing is sent yet.
    ///
    /// # Errors
    /// When it cannot be read, or says something that would not be kept.
    pub async fn read(host: &Host, folder: &Path) -> Result<Self, HostError> {
        let fail = |message: String| HostError {
            host: host.name.clone(),
            message,
        };
        let configured = configured(host, folder).await.map_err(&fail)?;
        check(&configured).map_err(|message| fail(message.to_owned()))?;
        let mut anonymous = configured.clone();
        anonymous.auth_info = AuthInfo::default();
        let mut tls = anonymous
            .rustls_client_config()
            .map_err(|error| fail(format!("its certificates cannot be used: {error}")))?;
        tls.alpn_protocols.clear();
        let (address, server_name) = place(&configured).map_err(&fail)?;
        let client = |config: Config| {
            Client::try_from(config)
                .map_err(|error| fail(format!("its kubeconfig cannot be used: {error}")))
        };
        Ok(Self {
            own: client(configured)?,
            bare: client(anonymous)?,
            address,
            tls: Arc::new(tls),
            server_name,
        })
    }
}

impl Connection {
    /// The host's version, for a look before a start.
    ///
    /// # Errors
    /// When it does not answer in time, or does not say it.
    pub async fn version(&self) -> Result<String, String> {
        let asked = tokio::time::timeout(ANSWER_MAX, self.own.apiserver_version()).await;
        let answer = asked.map_err(|_| "it does not answer in time".to_owned())?;
        answer
            .map(|version| version.git_version)
            .map_err(|error| error.to_string())
    }
}

async fn configured(host: &Host, folder: &Path) -> Result<Config, String> {
    let mut configured = match &host.kubeconfig {
        None => Config::incluster().map_err(|error| {
            format!("the server does not run in a cluster, or not with a service account: {error}")
        })?,
        Some(path) => {
            let path = folder.join(path);
            let shown = path.display();
            config::read(&path).map_err(|error| error.to_string())?;
            let kubeconfig = Kubeconfig::read_from(&path)
                .map_err(|error| format!("`{shown}` is no kubeconfig: {error}"))?;
            let options = KubeConfigOptions {
                context: host.context.clone(),
                ..KubeConfigOptions::default()
            };
            Config::from_custom_kubeconfig(kubeconfig, &options)
                .await
                .map_err(|error| format!("`{shown}` cannot be used: {error}"))?
        }
    };
    configured.connect_timeout = Some(CONNECT_MAX);
    Ok(configured)
}

/// What a kubeconfig can say and would not be kept on the gateway's way: it is refused, not left out.
fn check(configured: &Config) -> Result<(), &'static str> {
    let url = &configured.cluster_url;
    if url.scheme_str() != Some("https") {
        return Err("its `server` is not https");
    }
    if !matches!(url.path(), "" | "/") {
        return Err("its `server` has a path, which is not supported: name the API server itself");
    }
    if configured.accept_invalid_certs {
        return Err(
            "it says `insecure-skip-tls-verify`: name the CA in `certificate-authority-data`",
        );
    }
    if configured.proxy_url.is_some() {
        return Err("it says `proxy-url`, which is not supported");
    }
    if configured.auth_info.impersonate.is_some() {
        return Err("it impersonates somebody (`as`): give Kubler an account of its own");
    }
    Ok(())
}

fn place(configured: &Config) -> Result<(UpstreamAddress, ServerName<'static>), String> {
    let url = &configured.cluster_url;
    let host = url.host().unwrap_or_default();
    // In a URL an address of IPv6 has brackets.
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = configured.tls_server_name.as_deref().unwrap_or(bare);
    let server_name = ServerName::try_from(name.to_owned())
        .map_err(|_| format!("`{name}` is no name that a certificate could carry"))?;
    let port = url.port_u16().unwrap_or(HTTPS_PORT);
    Ok((UpstreamAddress::Tcp(bare.to_owned(), port), server_name))
}
