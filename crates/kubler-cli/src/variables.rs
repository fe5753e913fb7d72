//! Every environment variable that `kubler` reads, in one list, read in one place.

use std::path::PathBuf;

macro_rules! variables {
    ($($(#[doc = $doc:literal])+ $name:ident;)+) => {
        $($(#[doc = $doc])+ pub const $name: &str = stringify!($name);)+

        /// Name and meaning of each.
        pub const ALL: &[(&str, &str)] = &[$(($name, concat!($($doc),+)),)+];
    };
}

variables! {
    /// The server's URL.
    KUBLER_SERVER;
    /// The audience of identity tokens; the server's URL when absent.
    KUBLER_AUDIENCE;
    /// PEM file of the CA to trust instead of the system's.
    KUBLER_CA;
    /// File with an identity token; `-` is standard input.
    KUBLER_TOKEN_FILE;
    /// PEM file of an operator's certificate.
    KUBLER_CLIENT_CERTIFICATE;
    /// PEM file of its key.
    KUBLER_CLIENT_KEY;
    /// The environment that commands are about.
    KUBLER_ENVIRONMENT;
    /// The profile that environments are made of.
    KUBLER_PROFILE;
    /// Folder that holds the private folders of jobs; `/tmp` when absent.
    KUBLER_JOBS_FOLDER;
    /// Set by `kubler run` for its command: the name of its private folder.
    KUBLER_JOB;
    /// `text` or `json`.
    KUBLER_OUTPUT;
    /// The server's configuration, for `kubler policy` when `--config` is not given.
    KUBLER_CONFIG;
    /// Set by kubectl: the cluster that a credential is for.
    KUBERNETES_EXEC_INFO;
    /// Set by the agent: the job.
    BUILDKITE_JOB_ID;
    /// Set by the agent: the folder of the `buildkite-agent` program.
    BUILDKITE_BIN_PATH;
    /// Set by the agent: the agent's process.
    BUILDKITE_AGENT_PID;
    /// Set by the agent: the socket of the job's own API.
    BUILDKITE_AGENT_JOB_API_SOCKET;
    /// Set by the agent: the password of that API.
    BUILDKITE_AGENT_JOB_API_TOKEN;
    /// Set by the agent for a plugin's hook: its configuration as JSON.
    BUILDKITE_PLUGIN_CONFIGURATION;
    /// File of the system's CA certificates, as OpenSSL understands it.
    SSL_CERT_FILE;
}

/// The variable's value; absent when it is unset, empty or not UTF-8.
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
pub fn get(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The variable's value as a path.
pub fn path(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}
