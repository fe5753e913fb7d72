//! The server is killed right behind a durable step, at every step of an environment's life, and started again:
//! whoever asked asks again and gets the same, nothing is there twice, nothing is left, and the ledger tells all of it.

use std::time::Duration;

use kubler_server::crash::{CRASH_AT, Point};
use kubler_testkit::buildkite::{Build, Buildkite, Job};
use kubler_testkit::kubler::{Answer, Server};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::aftermath::{is_told, leaves_nothing, made_for, nothing_is_left};

/// How long a server may take to reach a point, on a busy machine.
const REACHED: Duration = Duration::from_secs(90);

/// What a test does so that the server reaches a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Start,
    Create,
    Attach,
    Session,
    Renew,
    Break,
    Release,
    Stop,
    /// Only on a host cluster.
    OnHost,
}

const fn deed(point: Point) -> Deed {
    match point {
        Point::EtcdPrepared
        | Point::EtcdSpawned
        | Point::EtcdRecorded
        | Point::EtcdUsersEnabled => Deed::Start,
        Point::CreateBegun
        | Point::RequestedStored
        | Point::RequestedRecorded
        | Point::CreateEnded
        | Point::ProvisioningStored
        | Point::ProvisioningRecorded
        | Point::FolderMade
        | Point::KeysWritten
        | Point::RoleMade
        | Point::UserMade
        | Point::UserAdmitted
        | Point::ControlPlaneSpawned
        | Point::ControlPlaneRecorded
        | Point::WayOutServed
        | Point::FactsApplied
        | Point::ManifestsApplied
        | Point::WholeRecorded
        | Point::ReadyStored
        | Point::ReadyRecorded => Deed::Create,
        Point::AttachedStored => Deed::Attach,
        Point::SessionBegun | Point::SessionStored | Point::SessionEnded => Deed::Session,
        Point::RenewBegun | Point::LeaseStored | Point::RenewEnded => Deed::Renew,
        Point::FailedStored | Point::FailedRecorded => Deed::Break,
        Point::ReleaseBegun
        | Point::ReleasingStored
        | Point::ReleasingRecorded
        | Point::ReleaseEnded
        | Point::ControlPlaneEnded
        | Point::UserDeleted
        | Point::RoleDeleted
        | Point::KeysDeleted
        | Point::FolderDeleted
        | Point::Looked
        | Point::GoneStored
        | Point::GoneRecorded => Deed::Release,
        Point::EtcdEnded | Point::EtcdDeleted => Deed::Stop,
        Point::NamespaceMade
        | Point::WallsMade
        | Point::AccountRemoved
        | Point::NamespaceDeleted => Deed::OnHost,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn l9_killed_behind_a_durable_step_it_goes_on_where_it_was() {
    let mut scene = Scene::new().await;
    let here = Point::ALL
        .iter()
        .filter(|point| deed(**point) != Deed::OnHost);
    let mut count = 0;
    for point in here {
        scene.kill_at(*point).await;
        count += 1;
    }
    leaves_nothing(scene.server).await;
    println!("verified: {count} points");
}

/// One server and the jobs that use it.
struct Scene {
    _buildkite: Buildkite,
    server: Server,
    build: Build,
    /// Attaches to what another job of the build has made.
    guest: Job,
}

impl Scene {
    async fn new() -> Self {
        let buildkite = Buildkite::start();
        let server = Server::of(&buildkite).start().await;
        let build = buildkite.build("app").start();
        let guest = build.job("guest").run();
        Self {
            _buildkite: buildkite,
            server,
            build,
            guest,
        }
    }

    /// Lets the server reach `point`, and looks at everything after its next start.
    async fn kill_at(&mut self, point: Point) {
        let (name, deed) = (point.name(), deed(point));
        // Shown when the test fails: whatever fails below is about the last one.
        println!("{name}, reached by {deed:?}");
        let job = self.build.job("test").run();
        let before = match deed {
            Deed::Start | Deed::Create | Deed::Stop => None,
            Deed::Attach => Some(
                self.shared(&job, false).await.unwrap().body["id"]
                    .as_str()
                    .unwrap()
                    .to_owned(),
            ),
            _ => Some(self.server.create_with_session(&job).await.0),
        };
        match deed {
            // Without environments nothing is left, etcd neither: it starts anew.
            Deed::Start => self.server.stop().await,
            _ => self.server.kill().await,
        }
        self.server.launch(&[(CRASH_AT, name)]);
        if self.server.wait_until_it_answers_or_ends().await {
            self.ask(deed, &job, before.as_deref()).await;
        }
        if let Err(instead) = self.server.wait_until_it_is_killed(REACHED).await {
            panic!(
                "`{name}` was not reached by {deed:?}: {instead}\n{}",
                self.server.log()
            );
        }
        self.server.restart().await;

        let known = made_for(&self.server, &job).await;
        let id = self.ask_again(deed, &job, before.as_deref()).await;
        assert!(
            known.iter().all(|known| *known == id),
            "{known:?} was there, and the retry made {id}"
        );
        assert_eq!(
            made_for(&self.server, &job).await,
            [id.as_str()],
            "`{name}`"
        );
        self.server.release_and_wait(&job, &id).await;
        nothing_is_left(&self.server, &id).await;
        let phases = is_told(&self.server, &job, &id).await;
        let broke: &[&str] = match deed {
            Deed::Break => &["failed"],
            _ => &[],
        };
        let lived = ["requested", "provisioning", "ready"];
        assert_eq!(phases, [&lived, broke, &["releasing", "gone"]].concat());
        job.finish(0);
    }

    /// Nobody waits for an answer: there may be none.
    async fn ask(&self, deed: Deed, job: &Job, id: Option<&str>) {
        let id = id.unwrap_or_default();
        let post = async |path: String, body: Option<Value>| {
            let token = self.server.token(job);
            let asked = self
                .server
                .try_request(Method::POST, &path, Some(&token), body.as_ref());
            drop(asked.await);
        };
        match deed {
            Deed::Start => {}
            Deed::Create => {
                let body = json!({ "profile": "ci-small", "name": "main", "wait_seconds": 60 });
                post("/v1/environments".to_owned(), Some(body)).await;
            }
            Deed::Session => drop(self.server.try_exchange(&self.server.token(job), id).await),
            Deed::Attach => drop(self.shared(&self.guest, true).await),
            // Tokens are minted by the second: one of the same second as the last proves nothing new.
            Deed::Renew => while self.renewed_nothing(job, id).await {},
            Deed::Break => {
                for process in self.server.control_planes() {
                    process.signal(Signal::KILL);
                }
            }
            Deed::Release => {
                let body = json!({ "wait_seconds": 60 });
                post(format!("/v1/environments/{id}/release"), Some(body)).await;
            }
            Deed::Stop | Deed::OnHost => self.server.signal(Signal::TERM),
        }
    }

    /// Makes the build's environment, or attaches to it.
    async fn shared(&self, job: &Job, attach: bool) -> reqwest::Result<Answer> {
        let body = json!({
            "profile": "ci-small", "name": "main", "scope": "build", "attach": attach, "wait_seconds": 60,
        });
        let token = self.server.token(job);
        let path = "/v1/environments";
        let asked = self
            .server
            .try_request(Method::POST, path, Some(&token), Some(&body));
        asked.await
    }

    async fn renewed_nothing(&self, job: &Job, id: &str) -> bool {
        let before = self.server.environment(id).await["lease_end"].clone();
        let path = format!("/v1/environments/{id}/renew");
        let token = self.server.token(job);
        let asked = self
            .server
            .try_request(Method::POST, &path, Some(&token), None);
        let asked = asked.await;
        asked.is_ok_and(|answer| answer.status == 200 && answer.body["lease_end"] == before)
    }

    /// What the caller does when no answer came; gives the environment.
    async fn ask_again(&self, deed: Deed, job: &Job, id: Option<&str>) -> String {
        let server = &self.server;
        match (deed, id) {
            (Deed::Break, Some(id)) => {
                let gone = server.wait_until_gone(id, REACHED).await;
                assert_eq!(gone["end"]["code"], "failed", "{gone}");
                id.to_owned()
            }
            (Deed::Attach, Some(id)) => {
                let attached = self.shared(&self.guest, true).await.unwrap();
                assert_eq!(attached.body["id"], id, "{attached:?}");
                let jobs = &server.environment(id).await["attached"];
                assert_eq!(jobs.as_array().map(Vec::len), Some(1), "{jobs}");
                assert_eq!(jobs[0]["job_id"], self.guest.id().to_string());
                let session = server.session(&self.guest, id).await;
                assert_eq!(server.reads(id, &session).await, 200);
                id.to_owned()
            }
            (Deed::Release, Some(id)) => {
                let gone = server.release_and_wait(job, id).await;
                assert_eq!(gone["end"]["code"], "released", "{gone}");
                id.to_owned()
            }
            (Deed::Renew, Some(id)) => {
                let before = server.environment(id).await["lease_end"].clone();
                let renewed = server.renew(job, id).await;
                assert_eq!(renewed.status, 200, "{renewed:?}");
                let moment =
                    |text: &Value| text.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
                assert!(moment(&renewed.body["lease_end"]) >= moment(&before));
                id.to_owned()
            }
            (_, id) => {
                let made = server.create(job, "main").await;
                let made = made["id"].as_str().unwrap();
                assert!(id.is_none_or(|id| id == made));
                let session = server.session(job, made).await;
                assert_eq!(server.reads(made, &session).await, 200);
                assert_eq!(
                    server.control_planes().len(),
                    1,
                    "{:#?}",
                    server.control_planes()
                );
                made.to_owned()
            }
        }
    }
}
