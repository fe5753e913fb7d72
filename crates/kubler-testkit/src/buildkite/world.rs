//! What the stand-in remembers, and every change of it as a plain function of an instant.
//! Nothing here opens a socket or reads a clock.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::faults::Faults;
use super::keys::KeyRing;
use super::record::{AgentRecord, BuildRecord, Heart, JobRecord, JobState, Organization, Pipeline};
use super::refusal::Refusal;

/// What a running agent is told, and when it is given up.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) heartbeat_timeout: SignedDuration,
    pub(crate) ping_interval_seconds: u64,
    pub(crate) job_status_interval_seconds: u64,
    pub(crate) heartbeat_interval_seconds: u64,
}

/// Everything the stand-in knows.
pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) organizations: Vec<Organization>,
    pub(crate) builds: BTreeMap<Uuid, BuildRecord>,
    pub(crate) jobs: BTreeMap<Uuid, JobRecord>,
    pub(crate) agents: BTreeMap<Uuid, AgentRecord>,
    pub(crate) keys: KeyRing,
    pub(crate) faults: Faults,
    pub(crate) issuer_url: String,
    pub(crate) agent_endpoint: String,
    pub(crate) jwks_requests: u64,
    pub(crate) discovery_requests: u64,
}

/// A job together with all it belongs to: what claims and environment are made from.
pub(crate) struct JobContext<'world> {
    pub(crate) organization: &'world Organization,
    pub(crate) pipeline: &'world Pipeline,
    pub(crate) build: &'world BuildRecord,
    pub(crate) job: &'world JobRecord,
    pub(crate) agent: Option<&'world AgentRecord>,
}

impl World {
    pub(crate) fn job(&self, id: Uuid) -> &JobRecord {
        &self.jobs[&id]
    }

    pub(crate) fn job_mut(&mut self, id: Uuid) -> &mut JobRecord {
        self.jobs.get_mut(&id).expect("a job never disappears")
    }

    pub(crate) fn organization(&self, id: Uuid) -> &Organization {
        let found = self
            .organizations
            .iter()
            .find(|organization| organization.id == id);
        found.expect("an organization never disappears")
    }

    /// By `PIPELINE`, of the first organization, or `ORGANIZATION/PIPELINE`.
    pub(crate) fn find_pipeline(&self, path: &str) -> (&Organization, &Pipeline) {
        let (organization, slug) = match path.split_once('/') {
            Some((organization, slug)) => (
                self.organizations
                    .iter()
                    .find(|one| one.slug == organization),
                slug,
            ),
            None => (self.organizations.first(), path),
        };
        let organization = organization.unwrap_or_else(|| panic!("no organization for `{path}`"));
        let pipeline = organization
            .pipelines
            .iter()
            .find(|pipeline| pipeline.slug == slug);
        (
            organization,
            pipeline.unwrap_or_else(|| panic!("no pipeline `{path}`")),
        )
    }

    pub(crate) fn context(&self, job_id: Uuid) -> JobContext<'_> {
        let job = self.job(job_id);
        let build = &self.builds[&job.build_id];
        let organization = self.organization(build.organization_id);
        let mut pipelines = organization.pipelines.iter();
        let pipeline = pipelines
            .find(|pipeline| pipeline.id == build.pipeline_id)
            .expect("its pipeline");
        let agent = job.agent_id.map(|agent_id| &self.agents[&agent_id]);
        JobContext {
            organization,
            pipeline,
            build,
            job,
            agent,
        }
    }

    /// Gives up every agent whose last heartbeat is too old, and ends its job. Says whether anything changed.
    pub(crate) fn give_up_lost_agents(&mut self, now: Timestamp) -> Changed {
        let mut changed = Changed::No;
        for agent in self.agents.values_mut() {
            let Heart::LastBeat(last) = agent.heart else {
                continue;
            };
            let Some(job_id) = agent.job_id else { continue };
            let deadline = last + self.settings.heartbeat_timeout;
            if now < deadline {
                continue;
            }
            agent.lost_at = Some(deadline);
            agent.job_id = None;
            agent.session_token = None;
            let job = self.jobs.get_mut(&job_id).expect("a job never disappears");
            job.timeline.agent_lost = Some(deadline);
            job.end("-1", None, None, deadline);
            changed = Changed::Yes;
        }
        changed
    }

    /// Hands a waiting job to an agent: the job token is made here.
    pub(crate) fn accept_job(
        &mut self,
        job_id: Uuid,
        agent_id: Uuid,
        token: String,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let job = self.jobs.get_mut(&job_id).ok_or_else(Refusal::not_found)?;
        let is_for_agent = match job.state {
            JobState::Scheduled => true,
            JobState::Assigned => job.agent_id == Some(agent_id),
            _ => false,
        };
        if !is_for_agent {
            return Err(Refusal::unprocessable(format!(
                "job is `{}` and cannot be taken",
                job.state
            )));
        }
        let agent = self
            .agents
            .get_mut(&agent_id)
            .expect("an agent never disappears");
        if agent.job_id.is_some_and(|running| running != job_id) {
            return Err(Refusal::unprocessable("agent already runs another job"));
        }
        agent.job_id = Some(job_id);
        job.agent_id = Some(agent_id);
        job.state = JobState::Accepted;
        job.token = Some(token);
        job.timeline.accepted = Some(now);
        Ok(())
    }

    /// Picks the oldest waiting job of the agent's organization, as a ping does.
    pub(crate) fn assign_job(&mut self, agent_id: Uuid) -> Option<Uuid> {
        let agent = &self.agents[&agent_id];
        if agent.ignore_in_dispatches || agent.job_id.is_some() {
            return None;
        }
        let organization_id = agent.organization_id;
        let waits = |job: &JobRecord| {
            let again = job.state == JobState::Assigned && job.agent_id == Some(agent_id);
            (again || job.state == JobState::Scheduled)
                && self.builds[&job.build_id].organization_id == organization_id
        };
        let waiting = self.jobs.values().filter(|job| waits(job));
        let job_id = waiting
            .min_by_key(|job| job.timeline.created)
            .map(|job| job.id)?;
        let job = self.job_mut(job_id);
        job.agent_id = Some(agent_id);
        job.state = JobState::Assigned;
        Some(job_id)
    }

    /// The agent says that its job now runs.
    pub(crate) fn start_job(&mut self, job_id: Uuid, now: Timestamp) -> Result<(), Refusal> {
        let job = self.job_mut(job_id);
        match job.state {
            JobState::Accepted => job.state = JobState::Running,
            // Cancelled between accept and start: the agent learns of it at its next poll.
            JobState::Canceling | JobState::TimingOut => {}
            other => {
                return Err(Refusal::unprocessable(format!(
                    "job is `{other}` and cannot be started"
                )));
            }
        }
        job.timeline.started = Some(now);
        Ok(())
    }

    /// The agent, or whoever stands in for it, says that its job is over.
    pub(crate) fn finish_job(
        &mut self,
        job_id: Uuid,
        finish: Finish,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let job = self.job_mut(job_id);
        if job.state.is_over() || job.agent_id.is_none() {
            return Err(Refusal::unprocessable(format!(
                "job is `{}` and cannot be finished",
                job.state
            )));
        }
        job.end(
            &finish.exit_status,
            finish.signal,
            finish.signal_reason,
            now,
        );
        let agent_id = job.agent_id.expect("checked above");
        let agent = self
            .agents
            .get_mut(&agent_id)
            .expect("an agent never disappears");
        agent.job_id = None;
        Ok(())
    }

    /// Asks for the end of a job: at once when no agent has it, through its agent otherwise.
    pub(crate) fn ask_to_end(&mut self, job_id: Uuid, ending: Ending, now: Timestamp) {
        let job = self.job_mut(job_id);
        let (going, gone) = match ending {
            Ending::Cancel => (JobState::Canceling, JobState::Canceled),
            Ending::TimeOut => (JobState::TimingOut, JobState::TimedOut),
        };
        match job.state {
            JobState::Scheduled | JobState::Assigned => {
                job.state = gone;
                job.timeline.end_asked = Some(now);
                job.timeline.ended = Some(now);
            }
            JobState::Accepted | JobState::Running => {
                job.state = going;
                job.timeline.end_asked = Some(now);
            }
            _ => {}
        }
    }
}

/// Whether a look at the world changed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    Yes,
    No,
}

/// Why somebody outside asks for the end of a job.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending {
    Cancel,
    TimeOut,
}

/// What an agent reports at the end. The exit status is text on the wire.
#[derive(Clone, Debug)]
pub(crate) struct Finish {
    pub(crate) exit_status: String,
    pub(crate) signal: Option<String>,
    pub(crate) signal_reason: Option<String>,
}
