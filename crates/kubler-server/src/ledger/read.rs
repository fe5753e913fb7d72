//! Reading on in the ledger. What is kept in memory is small: where every 256th record begins, and between which
//! records each environment and job lies. A search by one of them reads that stretch of the file, nothing else.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::Path;

use kubler_api::ledger::Records;
use kubler_core::environment::Phase;
use kubler_core::ids::EnvironmentId;
use kubler_core::ledger::layout;
use kubler_core::ledger::record::{Body, LedgerAction};
use serde_json::Value;

/// Records that one answer holds at most, and when the caller does not say.
pub(super) const READ_MAX: usize = 1000;
const READ_DEFAULT: usize = 100;
/// Records that one call looks at, at most: it then says where to go on.
const SCAN_MAX: u64 = 100_000;
/// Every so many records the place is kept.
const PLACE_EVERY: u64 = 256;

/// Which records. All given parts must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// Of this environment.
    pub environment: Option<EnvironmentId>,
    /// Of this job.
    pub job: Option<String>,
    /// From this sequence on.
    pub from: u64,
    /// At most so many.
    pub limit: Option<usize>,
}

/// What a record is found by.
#[derive(Debug, Clone, Default)]
pub(super) struct Mark {
    environment: Option<EnvironmentId>,
    job: Option<String>,
    /// The phase that the record tells the environment came to.
    phase: Option<Phase>,
}

impl Mark {
    pub(super) const fn new(environment: Option<EnvironmentId>, job: Option<String>) -> Self {
        Self {
            environment,
            job,
            phase: None,
        }
    }

    /// Likewise, of a record that tells what became of an environment.
    pub(super) fn telling(mut self, action: LedgerAction, phase: Option<Phase>) -> Self {
        self.phase = match action {
            LedgerAction::EnvironmentPhase => phase,
            // Its store did not know it any more, so nobody else will ever tell its end.
            LedgerAction::EnvironmentOrphan => Some(Phase::Gone),
            _ => None,
        };
        self
    }

    pub(super) fn of(body: &Body) -> Self {
        let identity = body.identity.as_ref();
        let job = identity.map(|identity| identity.job.id.clone());
        let phase = body.phase.as_ref().map(|phase| phase.to);
        Self::new(body.environment_id, job.or_else(|| body.job_id.clone()))
            .telling(body.action, phase)
    }
}

#[derive(Debug, Clone, Copy)]
struct Stretch {
    first: u64,
    last: u64,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    sequence: u64,
    segment: u64,
    offset: u64,
}

/// Where things are.
#[derive(Debug, Default)]
pub(super) struct Index {
    segments: Vec<u64>,
    places: Vec<Place>,
    environments: HashMap<EnvironmentId, Stretch>,
    /// The last phase of each environment of which no record tells that it is gone.
    phases: BTreeMap<EnvironmentId, Phase>,
    jobs: HashMap<String, Stretch>,
}

/// What a search reads.
#[derive(Debug)]
pub(super) struct Plan {
    start: Option<Place>,
    segments: Vec<u64>,
    from: u64,
    to: u64,
}

impl Index {
    pub(super) fn segment(&mut self, first: u64) {
        self.segments.push(first);
    }

    /// Whether it has no segment yet.
    pub(super) const fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// The segment that is written; the first one begins at 0.
    pub(super) fn last_segment(&self) -> u64 {
        self.segments.last().copied().unwrap_or(0)
    }

    pub(super) fn note(&mut self, sequence: u64, offset: u64, mark: Mark) {
        let segment = self.last_segment();
        if sequence.is_multiple_of(PLACE_EVERY) || sequence == segment {
            self.places.push(Place {
                sequence,
                segment,
                offset,
            });
        }
        let stretch = Stretch {
            first: sequence,
            last: sequence,
        };
        if let Some(id) = mark.environment {
            match mark.phase {
                Some(Phase::Gone) => drop(self.phases.remove(&id)),
                Some(phase) => drop(self.phases.insert(id, phase)),
                None => {}
            }
            self.environments.entry(id).or_insert(stretch).last = sequence;
        }
        if let Some(job) = mark.job {
            self.jobs.entry(job).or_insert(stretch).last = sequence;
        }
    }

    /// The last phase of each environment of which no record tells that it is gone.
    pub(super) const fn phases(&self) -> &BTreeMap<EnvironmentId, Phase> {
        &self.phases
    }

    pub(super) fn plan(&self, query: &Query, size: u64) -> Plan {
        let nothing = Stretch {
            first: u64::MAX,
            last: 0,
        };
        let environment = query
            .environment
            .map(|id| self.environments.get(&id).copied().unwrap_or(nothing));
        let job = query
            .job
            .as_ref()
            .map(|job| self.jobs.get(job).copied().unwrap_or(nothing));
        let stretches = || [environment, job].into_iter().flatten();
        let first = stretches().map(|stretch| stretch.first).max().unwrap_or(0);
        let last = stretches()
            .map(|stretch| stretch.last.saturating_add(1))
            .min();
        let to = last.map_or(size, |last| size.min(last));
        let from = query.from.max(first);
        let start = self
            .places
            .partition_point(|place| place.sequence <= from)
            .checked_sub(1)
            .and_then(|nth| self.places.get(nth))
            .copied();
        let segments = self
            .segments
            .iter()
            .copied()
            .filter(|segment| start.is_none_or(|place| *segment >= place.segment))
            .collect();
        Plan {
            start,
            segments,
            from,
            to,
        }
    }
}

/// Carries out a plan.
pub(super) fn read(folder: &Path, query: &Query, plan: &Plan) -> std::io::Result<Records> {
    let limit = query.limit.unwrap_or(READ_DEFAULT).clamp(1, READ_MAX);
    let mut found = Records {
        records: Vec::new(),
        next: None,
    };
    let Some(start) = plan.start.filter(|_| plan.from < plan.to) else {
        return Ok(found);
    };
    let stop = plan.to.min(plan.from.saturating_add(SCAN_MAX));
    let mut sequence = start.sequence;
    for segment in &plan.segments {
        let mut file = File::open(folder.join(layout::segment_name(*segment)))?;
        if *segment == start.segment {
            file.seek(SeekFrom::Start(start.offset))?;
        }
        for line in BufReader::new(file).lines() {
            let line = line?;
            if sequence >= stop || found.records.len() >= limit {
                found.next = (sequence < plan.to).then_some(sequence);
                return Ok(found);
            }
            if sequence >= plan.from {
                let record: Value = serde_json::from_str(&line).map_err(std::io::Error::other)?;
                if matches(query, &record) {
                    found.records.push(record);
                }
            }
            sequence += 1;
        }
    }
    Ok(found)
}

fn matches(query: &Query, record: &Value) -> bool {
    let environment = query.environment.is_none_or(|id| {
        record.get("environment_id").and_then(Value::as_str) == Some(&id.to_string())
    });
    let job = || {
        record
            .pointer("/identity/job/id")
            .or_else(|| record.get("job_id"))
    };
    let of_job = |wanted: &str| job().and_then(Value::as_str) == Some(wanted);
    environment && query.job.as_deref().is_none_or(of_job)
}

/// Whether a record says that its environment is made on a host.
pub(super) fn tells_host(record: &Value) -> bool {
    record.get("phase").is_some() && record.pointer("/details/host").is_some()
}

/// Whether a record says that its environment is gone.
pub(super) fn tells_gone(record: &Value) -> bool {
    let says = |pointer: &str| record.pointer(pointer).and_then(Value::as_str);
    says("/action") == Some(LedgerAction::EnvironmentOrphan.as_str())
        || says("/phase/to") == Some(Phase::Gone.as_str())
}
