//! What the suite is aimed at.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kubler_testkit::buildkite::{Buildkite, Job, OidcRequest};
use kubler_testkit::kubler::Server;
use kubler_testkit::lab::Lab;
use tempfile::TempDir;

use crate::forward;

/// The job's environment lives as long as a run may last.
const DEADLINE_SECONDS: u64 = 6 * 3600;
/// How often the job proves to be alive, and gets a fresh token.
const RENEW_EVERY: Duration = Duration::from_secs(60);

/// A cluster, and how it is reached.
pub(crate) struct Target {
    name: String,
    kubeconfig: PathBuf,
    variables: Vec<(String, String)>,
    world: World,
}

#[allow(dead_code, reason = "it is kept, so that it goes on")]
enum World {
    Lab(Box<Lab>),
    Local(Box<Local>),
}

/// A job with a `local` environment that stays alive.
#[allow(dead_code, reason = "it is kept, so that it goes on")]
struct Local {
    folder: TempDir,
    alive: tokio::task::JoinHandle<()>,
    server: std::sync::Arc<Server>,
    buildkite: Buildkite,
}

impl Target {
    pub(crate) async fn start(name: &str) -> Self {
        match name {
            "lab" => {
                let lab = Lab::start_with_test_images();
                Self {
                    name: name.to_owned(),
                    kubeconfig: lab.kubeconfig(),
                    variables: Vec::new(),
                    world: World::Lab(Box::new(lab)),
                }
            }
            "local" | "local-direct" => local(name).await,
            other => panic!("there is no target `{other}`"),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    pub(crate) const fn has_nodes(&self) -> bool {
        matches!(self.world, World::Lab(_))
    }

    /// What a client needs in its environment.
    pub(crate) fn variables(&self) -> Vec<(String, String)> {
        self.variables.clone()
    }
}

async fn local(name: &str) -> Target {
    let buildkite = Buildkite::start();
    let draft = Server::of(&buildkite)
        .log_filter("info")
        .profile_line(&format!("deadline_seconds: {DEADLINE_SECONDS}"))
        .profile_line("memory_bytes_max: 2147483648")
        .profile_line("stored_bytes_max: 1073741824");
    let server = std::sync::Arc::new(draft.start().await);
    let job = buildkite.build("app").start().job("conformance").run();
    let made = server.create(&job, "main").await;
    let id = made["id"].as_str().expect("an id").to_owned();
    let folder = tempfile::tempdir().expect("a folder");
    let kubeconfig = folder.path().join("kubeconfig");
    let text = if name == "local" {
        made["kubeconfig"]
            .as_str()
            .expect("a kubeconfig")
            .to_owned()
    } else {
        past_the_gateway(&server).await
    };
    fs::write(&kubeconfig, text).expect("a file");
    let token = folder.path().join("token");
    keep(&job, server.url(), &token);
    let variables = vec![
        text_of("KUBLER_TOKEN_FILE", &token),
        text_of("KUBLER_JOBS_FOLDER", folder.path()),
    ];
    let alive = tokio::spawn({
        let server = std::sync::Arc::clone(&server);
        async move {
            loop {
                tokio::time::sleep(RENEW_EVERY).await;
                let renewed = server.renew(&job, &id).await;
                if renewed.status != 200 {
                    println!("conformance: not renewed: {renewed:?}");
                }
                keep(&job, server.url(), &token);
            }
        }
    });
    Target {
        name: name.to_owned(),
        kubeconfig,
        variables,
        world: World::Local(Box::new(Local {
            folder,
            alive,
            server,
            buildkite,
        })),
    }
}

fn text_of(name: &str, path: &Path) -> (String, String) {
    (name.to_owned(), path.display().to_string())
}

/// Writes a fresh token of the job.
fn keep(job: &Job, audience: &str, file: &Path) {
    let token = job.oidc_token(&OidcRequest::for_kubler(audience));
    let next = file.with_extension("next");
    fs::write(&next, token.expect("a token")).expect("a file");
    fs::rename(next, file).expect("a file");
}

/// A kubeconfig for the only environment's own socket, with its own credential: what no job ever has.
async fn past_the_gateway(server: &Server) -> String {
    let planes = server.control_planes();
    let command = &planes.first().expect("a control plane").command;
    let mut words = command.split(' ');
    let folder = words.find_map(|word| word.strip_prefix("--folder="));
    let folder = PathBuf::from(folder.expect("its folder"));
    let port = forward::to_socket(folder.join("api.sock")).await;
    let tokens = fs::read_to_string(folder.join("tokens.csv")).expect("its credential");
    let token = tokens.split(',').next().expect("a token");
    format!(
        "apiVersion: v1
kind: Config
clusters:
- {{name: it, cluster: {{server: 'https://127.0.0.1:{port}', insecure-skip-tls-verify: true}}}}
users:
- {{name: it, user: {{token: '{token}'}}}}
contexts:
- {{name: it, context: {{cluster: it, user: it}}}}
current-context: it
"
    )
}
