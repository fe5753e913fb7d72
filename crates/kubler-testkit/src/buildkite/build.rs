//! Builds and jobs as a test writes them down.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::forge::TokenDraft;
use super::oidc::{self, OidcRequest};
use super::record::{
    AgentRecord, Annotation, BuildRecord, Heart, JobRecord, JobState, Mint, Organization, Timeline,
};
use super::refusal::Refusal;
use super::shared::Shared;
use super::world::{Ending, Finish};

/// A build that is not made yet; [`BuildDraft::start`] makes it.
#[must_use]
pub struct BuildDraft {
    shared: Shared,
    record: BuildRecord,
}

impl BuildDraft {
    pub(crate) fn new(shared: Shared, path: &str) -> Self {
        let record = shared.look(|world| {
            let (organization, pipeline) = world.find_pipeline(path);
            let earlier = world
                .builds
                .values()
                .filter(|build| build.pipeline_id == pipeline.id);
            BuildRecord {
                id: Uuid::now_v7(),
                number: earlier.map(|build| build.number).max().unwrap_or(0) + 1,
                organization_id: organization.id,
                pipeline_id: pipeline.id,
                branch: "main".into(),
                commit: "b5ffe3aeea51cec6c41aef16e45ee6bce47d8810".into(),
                tag: None,
                source: "ui".into(),
                creator: "Grace Hopper".into(),
                metadata: BTreeMap::new(),
                annotations: BTreeMap::new(),
            }
        });
        Self { shared, record }
    }

    /// Another branch than `main`.
    pub fn branch(mut self, branch: &str) -> Self {
        self.record.branch = branch.into();
        self
    }

    /// Another commit; may be `HEAD`.
    pub fn commit(mut self, commit: &str) -> Self {
        self.record.commit = commit.into();
        self
    }

    /// A build of a tag.
    pub fn tag(mut self, tag: &str) -> Self {
        self.record.tag = Some(tag.into());
        self
    }

    /// Another source than `ui`: `api`, `webhook`, `trigger_job`, `schedule`.
    pub fn source(mut self, source: &str) -> Self {
        self.record.source = source.into();
        self
    }

    /// The person who made it.
    pub fn creator(mut self, creator: &str) -> Self {
        self.record.creator = creator.into();
        self
    }

    /// Makes it.
    pub fn start(self) -> Build {
        let Self { shared, record } = self;
        let build = Build {
            shared,
            id: record.id,
        };
        build
            .shared
            .change(|world, _| world.builds.insert(record.id, record));
        build
    }
}

/// A build.
#[derive(Clone)]
pub struct Build {
    shared: Shared,
    id: Uuid,
}

impl Build {
    /// Its id.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// What is known of it now.
    pub fn record(&self) -> BuildRecord {
        self.shared.look(|world| world.builds[&self.id].clone())
    }

    /// A meta-data value.
    pub fn metadata(&self, key: &str) -> Option<String> {
        self.record().metadata.get(key).cloned()
    }

    /// All annotations, of the build and of its jobs.
    pub fn annotations(&self) -> Vec<Annotation> {
        self.record().annotations.into_values().collect()
    }

    /// A step of it, with this key.
    pub fn job(&self, step_key: &str) -> JobDraft {
        JobDraft {
            step_key: Some(step_key.into()),
            ..self.job_without_key()
        }
    }

    /// A step without a key: `step_key` is null.
    pub fn job_without_key(&self) -> JobDraft {
        JobDraft {
            build: self.clone(),
            step_key: None,
            env: BTreeMap::new(),
            plugins: Vec::new(),
            retry_of: None,
        }
    }
}

/// A job that is not made yet; [`JobDraft::create`] leaves it to an agent, [`JobDraft::run`] needs none.
#[must_use]
pub struct JobDraft {
    build: Build,
    step_key: Option<String>,
    env: BTreeMap<String, String>,
    plugins: Vec<Value>,
    retry_of: Option<Uuid>,
}

impl JobDraft {
    /// What it runs.
    pub fn command(self, command: &str) -> Self {
        self.env("BUILDKITE_COMMAND", command)
    }

    /// Another variable of its environment; may replace one that the stand-in sets.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Checks a repository out, at this commit; without this call there is no checkout.
    pub fn checkout(self, url: &str, commit: &str) -> Self {
        let draft = self
            .env("BUILDKITE_REPO", url)
            .env("BUILDKITE_COMMIT", commit);
        draft.env("BUILDKITE_SKIP_CHECKOUT", "false")
    }

    /// A plugin by its reference, for example `file:///folder/kubler-buildkite-plugin#v1.0.0`.
    pub fn plugin(mut self, reference: &str, configuration: Value) -> Self {
        self.plugins.push(Value::Object(Map::from_iter([(
            reference.to_owned(),
            configuration,
        )])));
        self
    }

    /// Makes it: it waits for an agent.
    pub fn create(self) -> Job {
        let Self {
            build,
            step_key,
            mut env,
            plugins,
            retry_of,
        } = self;
        if !plugins.is_empty() {
            env.insert("BUILDKITE_PLUGINS".into(), json!(plugins).to_string());
        }
        let job = Job {
            shared: build.shared.clone(),
            id: Uuid::now_v7(),
            build,
        };
        job.shared.change(|world, now| {
            world
                .jobs
                .insert(job.id, new_record(&job, step_key, env, retry_of, now))
        });
        job
    }

    /// Makes it and has it run by an agent that is only imagined: always well, until
    /// [`Job::finish`] or [`Job::vanish_agent`].
    pub fn run(self) -> Job {
        let job = self.create();
        job.run_by_imagined_agent();
        job
    }
}

fn new_record(
    job: &Job,
    step_key: Option<String>,
    env: BTreeMap<String, String>,
    retry_of: Option<Uuid>,
    now: Timestamp,
) -> JobRecord {
    JobRecord {
        id: job.id,
        build_id: job.build.id,
        step_key,
        env,
        state: JobState::Scheduled,
        agent_id: None,
        token: None,
        exit_status: None,
        signal: None,
        signal_reason: None,
        timeline: Timeline {
            created: now,
            accepted: None,
            started: None,
            end_asked: None,
            agent_lost: None,
            ended: None,
        },
        mints: Vec::new(),
        retry_of,
        chunks: BTreeMap::new(),
    }
}

/// What a job was waited for did not come in time.
#[derive(Clone, Debug, thiserror::Error)]
#[error("waited {bound:?} for {what}, in vain: job is `{state}`, its log is\n{log}")]
pub struct WaitedInVain {
    what: String,
    bound: Duration,
    state: JobState,
    log: String,
}

/// A job.
#[derive(Clone)]
pub struct Job {
    shared: Shared,
    build: Build,
    id: Uuid,
}

impl Job {
    /// Its id: new for every retry.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Its build.
    pub fn build(&self) -> &Build {
        &self.build
    }

    /// Its organization.
    pub fn organization(&self) -> Organization {
        self.shared
            .look(|world| world.context(self.id).organization.clone())
    }

    /// Everything known of it now.
    pub fn record(&self) -> JobRecord {
        self.shared.look(|world| world.job(self.id).clone())
    }

    /// Where it stands now.
    pub fn state(&self) -> JobState {
        self.shared.look(|world| world.job(self.id).state)
    }

    /// Its `BUILDKITE_AGENT_ACCESS_TOKEN`, while it has one.
    pub fn access_token(&self) -> Option<String> {
        self.shared.look(|world| world.job(self.id).token.clone())
    }

    /// Exit status, once it ended.
    pub fn exit_status(&self) -> Option<i32> {
        self.record().exit_status
    }

    /// Its log as a person reads it.
    pub fn log(&self) -> String {
        self.record().log()
    }

    /// When things happened.
    pub fn timeline(&self) -> Timeline {
        self.record().timeline
    }

    /// Every request for an OIDC token so far.
    pub fn mints(&self) -> Vec<Mint> {
        self.record().mints
    }

    /// Cancels it, as a person does in the web page.
    pub fn cancel(&self) {
        self.shared
            .change(|world, now| world.ask_to_end(self.id, Ending::Cancel, now));
    }

    /// Lets its time be up.
    pub fn time_out(&self) {
        self.shared
            .change(|world, now| world.ask_to_end(self.id, Ending::TimeOut, now));
    }

    /// Ends it with an exit status, as its agent would: from now on its tokens are dead.
    pub fn finish(&self, exit_status: i32) {
        let finish = Finish {
            exit_status: exit_status.to_string(),
            signal: None,
            signal_reason: None,
        };
        let finished = self
            .shared
            .change(|world, now| world.finish_job(self.id, finish, now));
        finished.expect("a job that an agent has");
    }

    /// Stops the heartbeats of the imagined agent. The job mints until the time-out and ends then.
    pub fn vanish_agent(&self) {
        self.shared.change(|world, now| {
            let agent_id = world
                .job(self.id)
                .agent_id
                .expect("a job that an agent has");
            let agent = world.agents.get_mut(&agent_id).expect("its agent");
            assert_eq!(
                agent.heart,
                Heart::Imagined,
                "a real agent vanishes when it is killed"
            );
            agent.heart = Heart::LastBeat(now);
        });
    }

    /// A new job that repeats this one.
    pub fn retry(&self) -> JobDraft {
        let record = self.record();
        let draft = JobDraft {
            env: record.env,
            retry_of: Some(self.id),
            ..self.build.job_without_key()
        };
        JobDraft {
            step_key: record.step_key,
            ..draft
        }
    }

    /// An OIDC token by the rules of the HTTP route, the death of the job token included.
    ///
    /// # Errors
    /// The refusal that the agent would get.
    pub fn oidc_token(&self, request: &OidcRequest) -> Result<String, Refusal> {
        self.shared
            .change(|world, now| match world.job(self.id).token {
                Some(_) => oidc::mint(world, self.id, request, now),
                None => Err(Refusal::unauthorized()),
            })
    }

    /// The token of this job that the service would sign now for `request`, to be bent before it is
    /// signed; given in every state of the job.
    ///
    /// # Panics
    /// When the service would refuse `request` itself.
    pub fn forge(&self, request: &OidcRequest) -> TokenDraft {
        let draft = self
            .shared
            .look(|world| oidc::draft(world, self.id, request, Timestamp::now()));
        draft.expect("a request that the service takes")
    }

    /// Waits until the job is as `condition` says; `what` is said when it never is.
    ///
    /// # Errors
    /// `WaitedInVain` after `bound`, with the state and the log.
    pub async fn wait_until(
        &self,
        what: &str,
        bound: Duration,
        condition: impl Fn(&JobRecord) -> bool,
    ) -> Result<JobRecord, WaitedInVain> {
        let look =
            |world: &super::world::World| Some(world.job(self.id).clone()).filter(&condition);
        let found = self.shared.wait(bound, look).await;
        found.ok_or_else(|| {
            let record = self.record();
            WaitedInVain {
                what: what.into(),
                bound,
                state: record.state,
                log: record.log(),
            }
        })
    }

    /// Waits until it runs.
    ///
    /// # Errors
    /// `WaitedInVain` after `bound`.
    pub async fn wait_until_running(&self, bound: Duration) -> Result<JobRecord, WaitedInVain> {
        self.wait_until("the job to run", bound, |job| {
            job.state == JobState::Running
        })
        .await
    }

    /// Waits until it is over.
    ///
    /// # Errors
    /// `WaitedInVain` after `bound`.
    pub async fn wait_until_over(&self, bound: Duration) -> Result<JobRecord, WaitedInVain> {
        self.wait_until("the end of the job", bound, |job| job.state.is_over())
            .await
    }

    /// Waits until its log holds this text.
    ///
    /// # Errors
    /// `WaitedInVain` after `bound`.
    pub async fn wait_for_log(
        &self,
        text: &str,
        bound: Duration,
    ) -> Result<JobRecord, WaitedInVain> {
        self.wait_until(&format!("`{text}` in the log"), bound, |job| {
            job.log().contains(text)
        })
        .await
    }

    fn run_by_imagined_agent(&self) {
        self.shared.change(|world, now| {
            let organization_id = world.builds[&self.build.id].organization_id;
            let agent = AgentRecord {
                id: Uuid::now_v7(),
                name: "imagined".into(),
                organization_id,
                session_token: None,
                tags: Vec::new(),
                ignore_in_dispatches: true,
                heart: Heart::Imagined,
                job_id: None,
                lost_at: None,
            };
            let agent_id = agent.id;
            world.agents.insert(agent_id, agent);
            let token = super::job_token();
            let started = world
                .accept_job(self.id, agent_id, token, now)
                .and_then(|()| world.start_job(self.id, now));
            started.expect("a job that waits");
        });
    }
}
