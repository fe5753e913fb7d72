//! What is known of organizations, builds, jobs and agents.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use uuid::Uuid;

use super::refusal::Refusal;

/// A Buildkite organization with a cluster and a queue of its own.
#[derive(Clone, Debug)]
pub struct Organization {
    /// Immutable id.
    pub id: Uuid,
    /// Name in URLs and claims.
    pub slug: String,
    /// Its one cluster.
    pub cluster_id: Uuid,
    /// Name of the cluster.
    pub cluster_name: String,
    /// Its one queue.
    pub queue_id: Uuid,
    /// Key of the queue.
    pub queue_key: String,
    /// The secret with which agents register.
    pub registration_token: String,
    /// In the order in which they were declared.
    pub pipelines: Vec<Pipeline>,
}

/// A pipeline of an organization.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// Immutable id.
    pub id: Uuid,
    /// Name in URLs and claims.
    pub slug: String,
}

/// A build and what its jobs share.
#[derive(Clone, Debug)]
pub struct BuildRecord {
    /// Immutable id.
    pub id: Uuid,
    /// Counts up per pipeline, from 1.
    pub number: u64,
    /// Owner.
    pub organization_id: Uuid,
    /// Owner.
    pub pipeline_id: Uuid,
    /// Branch, as given: free text.
    pub branch: String,
    /// Commit, as given: may be `HEAD`.
    pub commit: String,
    /// Tag, if it is a build of one.
    pub tag: Option<String>,
    /// `ui`, `api`, `webhook`, `trigger_job` or `schedule`.
    pub source: String,
    /// Name of the person who made it.
    pub creator: String,
    /// Meta-data set by its jobs.
    pub metadata: BTreeMap<String, String>,
    /// Annotations by (scope, context).
    pub annotations: BTreeMap<(AnnotationScope, String), Annotation>,
}

/// Where an annotation is shown; the job is named for job scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AnnotationScope {
    /// On the page of the build.
    Build,
    /// On one job.
    Job(Uuid),
}

/// A note on a build or job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Annotation {
    /// `CommonMark`, at most 1 MiB.
    pub body: String,
    /// The key under which it is replaced or appended to.
    pub context: String,
    /// `default`, `success`, `info`, `warning` or `error`.
    pub style: String,
    /// 1 to 10.
    pub priority: u8,
    /// Build or job.
    pub scope: AnnotationScope,
    /// The job that wrote it last.
    pub written_by: Uuid,
}

/// The state of a job, in Buildkite's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// Waits for an agent.
    Scheduled,
    /// Offered to an agent by a ping.
    Assigned,
    /// Taken by an agent, not yet started.
    Accepted,
    /// Runs.
    Running,
    /// Was asked to end by a person; its agent has not finished it yet.
    Canceling,
    /// Ended that way.
    Canceled,
    /// Its time is up; its agent has not finished it yet.
    TimingOut,
    /// Ended that way.
    TimedOut,
    /// Ended with an exit status.
    Finished,
}

impl JobState {
    /// No agent has anything more to do with it, and its token is dead.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Canceled | Self::TimedOut | Self::Finished)
    }

    /// An agent has started it and not finished it: only then are OIDC tokens given.
    pub fn may_mint(self) -> bool {
        matches!(self, Self::Running | Self::Canceling | Self::TimingOut)
    }

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Running => "running",
            Self::Canceling => "canceling",
            Self::Canceled => "canceled",
            Self::TimingOut => "timing_out",
            Self::TimedOut => "timed_out",
            Self::Finished => "finished",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// When things happened to a job, by the stand-in's clock.
#[derive(Clone, Copy, Debug)]
pub struct Timeline {
    /// The job exists.
    pub created: Timestamp,
    /// An agent took it.
    pub accepted: Option<Timestamp>,
    /// The agent started it.
    pub started: Option<Timestamp>,
    /// Somebody cancelled it, or its time was up.
    pub end_asked: Option<Timestamp>,
    /// The agent was given up: last heartbeat + time-out.
    pub agent_lost: Option<Timestamp>,
    /// The job is over and its token dead.
    pub ended: Option<Timestamp>,
}

/// One request for an OIDC token and how it was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mint {
    /// When it was asked for.
    pub at: Timestamp,
    /// The audience in the token, or that was asked for.
    pub audience: String,
    /// The token, when one was given.
    pub outcome: Result<String, Refusal>,
}

/// Everything known of a job.
#[derive(Clone, Debug)]
pub struct JobRecord {
    /// Globally unique, new for a retry.
    pub id: Uuid,
    /// The build it belongs to.
    pub build_id: Uuid,
    /// `key:` of the step, if it has one.
    pub step_key: Option<String>,
    /// Environment beside what the stand-in sets itself.
    pub env: BTreeMap<String, String>,
    /// Where it stands.
    pub state: JobState,
    /// The agent that took it.
    pub agent_id: Option<Uuid>,
    /// `BUILDKITE_AGENT_ACCESS_TOKEN`, from accept to end.
    pub token: Option<String>,
    /// As reported at the end; `-1` for a lost agent.
    pub exit_status: Option<i32>,
    /// For example `SIGTERM`.
    pub signal: Option<String>,
    /// For example `cancel`, `agent_stop`, `agent_refused`.
    pub signal_reason: Option<String>,
    /// When all of that happened.
    pub timeline: Timeline,
    /// Every OIDC request by or for this job.
    pub mints: Vec<Mint>,
    /// The job this one repeats.
    pub retry_of: Option<Uuid>,
    pub(crate) chunks: BTreeMap<u64, Vec<u8>>,
}

impl JobRecord {
    pub(crate) fn end(
        &mut self,
        exit_status: &str,
        signal: Option<String>,
        signal_reason: Option<String>,
        now: Timestamp,
    ) {
        self.state = match self.state {
            JobState::Canceling => JobState::Canceled,
            JobState::TimingOut => JobState::TimedOut,
            _ => JobState::Finished,
        };
        self.exit_status = exit_status.parse().ok();
        self.signal = signal;
        self.signal_reason = signal_reason;
        self.token = None;
        self.timeline.ended = Some(now);
    }

    /// The log as a person reads it: chunks in their order, without timestamp escapes, and without the
    /// carriage returns that a terminal puts before a line's end.
    pub fn log(&self) -> String {
        let bytes: Vec<u8> = self.chunks.values().flatten().copied().collect();
        let text = strip_timestamps(&String::from_utf8_lossy(&bytes));
        let lines = text
            .split_inclusive('\n')
            .map(|line| match line.strip_suffix('\n') {
                Some(line) => format!("{}\n", line.trim_end_matches('\r')),
                None => line.to_owned(),
            });
        lines.collect()
    }
}

/// Takes out `ESC _bk;t=…BEL`, which the agent puts before each line.
fn strip_timestamps(raw: &str) -> String {
    let mut clean = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(start) = rest.find("\u{1b}_bk;") {
        clean.push_str(&rest[..start]);
        let Some(length) = rest[start..].find('\u{7}') else {
            return clean;
        };
        rest = &rest[start + length + 1..];
    }
    clean.push_str(rest);
    clean
}

/// How an agent is known to be alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heart {
    /// No process stands behind it: it is always well until told to vanish.
    Imagined,
    /// The instant of the last heartbeat.
    LastBeat(Timestamp),
}

/// A registered agent.
#[derive(Clone, Debug)]
pub(crate) struct AgentRecord {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) organization_id: Uuid,
    pub(crate) session_token: Option<String>,
    /// `name=value`, or a bare name.
    pub(crate) tags: Vec<String>,
    pub(crate) ignore_in_dispatches: bool,
    pub(crate) heart: Heart,
    pub(crate) job_id: Option<Uuid>,
    pub(crate) lost_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::strip_timestamps;

    #[test]
    fn timestamp_escapes_are_taken_out_and_all_else_is_kept() {
        let raw = "\u{1b}_bk;t=1700000000123\u{7}one\n\u{1b}_bk;t=1\u{7}\u{1b}[31mtwo\u{1b}[0m\n\u{1b}_bk;t=17";
        assert_eq!(strip_timestamps(raw), "one\n\u{1b}[31mtwo\u{1b}[0m\n");
    }
}
