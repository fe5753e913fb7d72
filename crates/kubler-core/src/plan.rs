//! What to do next: compares what the store says should exist with what does exist. Pure, so that every
//! situation is a row of a table.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::environment::{EndReason, Environment, Phase};
use crate::ids::EnvironmentId;
use crate::lease::{self, ServingSince};

/// What an engine finds in the world for one environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Whose it is, read from a mark in the world.
    pub id: EnvironmentId,
    /// Whether it works.
    pub condition: Condition,
}

/// Whether what was found works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// All its parts are there and alive.
    Whole,
    /// Something is there, but not all of it.
    Broken {
        /// What is missing, for people.
        message: String,
    },
}

/// One thing to do. Each is idempotent, and each is about one environment, so that one that is stuck delays no other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make it, or go on making it.
    Provision(EnvironmentId),
    /// Record that it broke.
    Break(EnvironmentId, EndReason),
    /// Record that it shall end: from here on its credentials are dead.
    End(EnvironmentId, EndReason),
    /// Take away what is there, look, and record that it is gone.
    Remove(EnvironmentId),
    /// Take away something that belongs to nothing stored.
    RemoveOrphan(EnvironmentId),
}

/// Everything a plan looks at.
#[derive(Debug)]
pub struct Situation<'a> {
    /// Every environment that is not gone.
    pub stored: &'a [Environment],
    /// What engines found. `None` when the world could not be looked at: then nothing is concluded from absence.
    pub observed: Option<&'a [Observed]>,
    /// Environments that somebody is working on right now.
    pub busy: &'a BTreeSet<EnvironmentId>,
    /// How many more may be made now, besides those that are being made.
    pub places: usize,
    /// Since when jobs could renew.
    pub serving_since: ServingSince,
    /// Now.
    pub now: Timestamp,
}

/// What to do, oldest environment first.
pub fn plan(situation: &Situation<'_>) -> Vec<Step> {
    let found: BTreeMap<_, _> = situation
        .observed
        .unwrap_or_default()
        .iter()
        .map(|found| (found.id, &found.condition))
        .collect();
    let mut free = situation.places;
    let mut oldest_first: Vec<_> = situation.stored.iter().collect();
    oldest_first.sort_by_key(|environment| (environment.created_at, environment.id));

    let mut steps = Vec::new();
    for environment in oldest_first {
        let id = environment.id;
        if environment.phase.is_live()
            && let Some(reason) = lease::ended(environment, situation.serving_since, situation.now)
        {
            steps.push(Step::End(id, reason));
            continue;
        }
        match environment.phase {
            // Ending waits for nobody: but work that is under way must notice first.
            _ if situation.busy.contains(&id) => {}
            Phase::Requested | Phase::Provisioning => {
                if free > 0 {
                    free -= 1;
                    steps.push(Step::Provision(id));
                }
            }
            Phase::Ready => steps.extend(broken(id, situation, &found)),
            Phase::Failed => {
                let reason = environment.reason.clone().unwrap_or(EndReason::Revoked);
                steps.push(Step::End(id, reason));
            }
            Phase::Releasing => steps.push(Step::Remove(id)),
            Phase::Gone => {}
        }
    }
    let known: BTreeSet<_> = situation
        .stored
        .iter()
        .map(|environment| environment.id)
        .collect();
    let orphans = found
        .keys()
        .filter(|id| !known.contains(id) && !situation.busy.contains(id));
    steps.extend(orphans.map(|id| Step::RemoveOrphan(*id)));
    steps
}

fn broken(
    id: EnvironmentId,
    situation: &Situation<'_>,
    found: &BTreeMap<EnvironmentId, &Condition>,
) -> Option<Step> {
    situation.observed?;
    let message = match found.get(&id) {
        Some(Condition::Whole) => return None,
        Some(Condition::Broken { message }) => message.clone(),
        None => "it had disappeared: neither its process nor its data was there".to_owned(),
    };
    Some(Step::Break(id, EndReason::Failed { message }))
}

#[cfg(test)]
mod tests;
