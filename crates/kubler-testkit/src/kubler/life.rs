//! Its life: started, stopped, killed, started again.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{LOOK_INTERVAL, STOP_BOUND, Server};

/// How long a server may take to answer its first request: etcd starts with it.
const START_BOUND: Duration = Duration::from_secs(30);

impl Server {
    /// Starts it on the same folder; a running one is stopped gracefully before.
    ///
    /// # Panics
    /// With its log, when it does not answer.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.launch(&[]);
        self.wait_until_it_answers().await;
    }

    /// Starts it with these variables, and does not wait until it answers. It must not run.
    ///
    /// # Panics
    /// When the program cannot be run.
    pub fn launch(&mut self, variables: &[(&str, &str)]) {
        assert!(self.child.is_none(), "it runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("server.log"))
            .expect("a log");
        let child = Command::new(self.programs.server())
            .args(["serve", "--config"])
            .arg(self.folder().join("kubler.yaml"))
            .env("KUBLER_LOG", &self.log_filter)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("a server that starts");
        self.child = Some(child);
    }

    /// Waits until it answers.
    ///
    /// # Panics
    /// With its log, when it ends or does not answer.
    pub async fn wait_until_it_answers(&mut self) {
        let deadline = Instant::now() + START_BOUND;
        while !self.answers().await {
            assert!(
                self.ended().is_none() && Instant::now() < deadline,
                "the server does not answer: {}",
                self.log()
            );
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Waits until it answers or has ended; whether it answers.
    ///
    /// # Panics
    /// With its log, when it does neither.
    pub async fn wait_until_it_answers_or_ends(&mut self) -> bool {
        let deadline = Instant::now() + START_BOUND;
        loop {
            if self.ended().is_some() {
                return false;
            }
            if self.answers().await {
                return true;
            }
            assert!(
                Instant::now() < deadline,
                "the server does not answer: {}",
                self.log()
            );
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn answers(&self) -> bool {
        self.client
            .get(format!("{}/healthz", self.url))
            .send()
            .await
            .is_ok_and(|answer| answer.status().is_success())
    }

    /// How it ended, once it has.
    fn ended(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        child.try_wait().expect("our child")
    }

    /// Waits until it has been ended by SIGKILL.
    ///
    /// # Errors
    /// What it does instead, after `bound`.
    pub async fn wait_until_it_is_killed(&mut self, bound: Duration) -> Result<(), String> {
        let deadline = Instant::now() + bound;
        loop {
            if let Some(ended) = self.ended() {
                self.child = None;
                let killed = ended.signal() == Some(Signal::KILL.as_raw());
                return killed.then_some(()).ok_or_else(|| format!("{ended}"));
            }
            if Instant::now() > deadline {
                return Err(format!("it lives on after {bound:?}"));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// SIGTERM, and waits for its end. Environments stay alive.
    pub async fn stop(&mut self) {
        self.end(Signal::TERM).await;
    }

    /// SIGKILL. Environments stay alive.
    pub async fn kill(&mut self) {
        self.end(Signal::KILL).await;
    }

    async fn end(&mut self, signal: Signal) {
        self.signal(signal);
        let deadline = Instant::now() + STOP_BOUND;
        while self.child.is_some() && self.ended().is_none() {
            assert!(
                Instant::now() < deadline,
                "the server does not stop: {}",
                self.log()
            );
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        self.child = None;
    }

    /// Sends it a signal and does not wait.
    pub fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().map(std::process::Child::id);
        let pid = pid.and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }

    /// SIGHUP: loads configuration and policies anew.
    pub fn reload(&self) {
        self.process().signal(Signal::HUP);
    }
}
