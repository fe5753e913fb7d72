//! Before the command: an environment is made, kept alive, and handed to the job. Prints the exports.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use kubler_api::Environment;

use crate::clock::{self, Deadline};
use crate::commands::kubeconfig;
use crate::exit::Outcome;
use crate::hook::Phase;
use crate::hook::announce;
use crate::hook::configuration::{Annotation, Configuration};
use crate::job::JobEnvironment;
use crate::job::abandoned;
use crate::job::folder::PrivateFolder;
use crate::output;
use crate::renewer;
use crate::renewer::renewal;
use crate::server::connected::{Connected, Proof};
use crate::server::creation::{self, Asking};
use crate::server::session;

/// Longest time for telling the build about the environment, in seconds. It is made meanwhile.
const ANNOUNCE_SECONDS_MAX: u64 = 5;
/// Longest time for getting the first session, in seconds.
const FIRST_SESSION_SECONDS_MAX: u64 = 5;

/// Runs the hook `phase`.
pub fn run(phase: Phase, bootstrap: i32) -> Outcome<()> {
    let configuration = Configuration::of_this_hook()?;
    if configuration.hook != phase {
        return Ok(());
    }
    let connection = configuration.connection()?;
    let folder = PrivateFolder::of_buildkite_job()?;
    abandoned::belongs_to(&folder, bootstrap)?;
    abandoned::clear_beside(&folder);
    let connected = Arc::new(Connected::new(&connection, None, None)?);
    let mut making = Making {
        configuration: &configuration,
        connected: &connected,
        folder: &folder,
        bootstrap,
        ca: connection.ca,
        begun: None,
    };
    let created = creation::create_with(
        &connected,
        &configuration.wanted()?,
        &Asking::default(),
        |first| making.begin(first.environment, first.proof),
    )?;
    let Some((job, announced)) = making.begun else {
        return Ok(());
    };
    let path = folder.file(&job.kubeconfig());
    kubeconfig::write(&connected, &created.environment, None, &path)?;
    if let Proof::Token(token) = &created.proof {
        let deadline = Deadline::after(Duration::from_secs(FIRST_SESSION_SECONDS_MAX));
        // Only a convenience: without it the first kubectl asks for itself, and says why it cannot.
        if let Ok(kept) = session::exchange(&connected, token, &job.environment, deadline) {
            session::hide(&kept);
            session::keep(&folder, &kept)?;
        }
    }
    for failure in announced
        .into_iter()
        .filter_map(|thread| thread.join().ok()?.err())
    {
        output::remark(&format!(
            "kubler: the build was not told: {}",
            failure.message
        ));
    }
    remark(&created.environment);
    let mut exports = job.variables();
    exports.push(("KUBECONFIG", path.display().to_string()));
    output::data(
        &exports
            .iter()
            .map(|(name, value)| export(name, value))
            .collect::<Vec<_>>()
            .join("\n"),
    )
}

/// The environment while it is being made.
struct Making<'a> {
    configuration: &'a Configuration,
    connected: &'a Arc<Connected>,
    folder: &'a PrivateFolder,
    bootstrap: i32,
    ca: Option<std::path::PathBuf>,
    begun: Option<(JobEnvironment, Vec<Announcement>)>,
}

type Announcement = JoinHandle<Outcome<()>>;

impl Making<'_> {
    /// As soon as the server knows of it: from here on it is kept alive, and ended with the job.
    fn begin(&mut self, environment: &Environment, proof: &Proof) -> Outcome<()> {
        let job = JobEnvironment {
            name: self.configuration.name.clone(),
            environment: environment.id.clone(),
            profile: environment.profile.clone(),
            scope: environment.scope,
            release: self.configuration.release,
            server: self.connected.client.server().to_owned(),
            audience: self.connected.audience.clone(),
            ca: self.ca.clone(),
        };
        let known = JobEnvironment::read(self.folder, &job.name);
        let is_new = known.as_ref() != Some(&job) || !renewer::is_alive(self.folder, &job.name);
        job.write(self.folder)?;
        let mut announced = Vec::new();
        if is_new {
            let token = match proof {
                Proof::Token(token) => Some(token),
                Proof::Certificate => None,
            };
            renewer::start(&job, self.bootstrap, renewal::every(environment), token)?;
            announced = self.announce(&job, environment);
        }
        self.begun = Some((job, announced));
        Ok(())
    }

    fn announce(&self, job: &JobEnvironment, environment: &Environment) -> Vec<Announcement> {
        let deadline = Deadline::after(Duration::from_secs(ANNOUNCE_SECONDS_MAX));
        let (first, second) = (job.clone(), (job.clone(), environment.clone()));
        let mut announced = vec![std::thread::spawn(move || {
            announce::environment(&first, deadline)
        })];
        if self.configuration.annotation == Annotation::Shown {
            announced.push(std::thread::spawn(move || {
                announce::made(&second.0, &second.1, deadline)
            }));
        }
        announced
    }
}

fn remark(environment: &Environment) {
    let took = environment
        .ready_at
        .map(|ready_at| output::span(ready_at.duration_since(environment.created_at)));
    output::remark(&format!(
        "kubler: environment {} is ready{} (profile {}, Kubernetes {}, at most until {})",
        environment.id,
        took.map(|took| format!(" after {took}"))
            .unwrap_or_default(),
        output::plain(&environment.profile),
        output::plain(&environment.kubernetes_version),
        output::moment(environment.deadline, clock::now()),
    ));
}

/// One line that a POSIX shell takes as it is meant, whatever the value holds.
fn export(name: &str, value: &str) -> String {
    format!("export {name}='{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_takes_a_value_as_it_is() {
        for value in ["/tmp/a b", "it's", "$(touch /tmp/x) `id` \"\\\n;", ""] {
            let script = format!("{}\nprintf %s \"$X\"", export("X", value));
            let output = std::process::Command::new("sh")
                .args(["-c", &script])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), value);
        }
    }
}
