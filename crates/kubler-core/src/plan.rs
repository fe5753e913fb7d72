//! What to do next: compares what the store says should exist with what does exist. Pure, so that every
//! situation is a row of a table.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::environment::{EndReason, Environment, Phase, Site};
use crate::ids::EnvironmentId;
use crate::lease::{self, ServingSince};
use crate::profile::EngineKind;

/// What an engine finds in the world for one environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Whose it is, read from a mark in the world.
    pub id: EnvironmentId,
    /// Whether it works.
    pub condition: Condition,
    /// Whether it may be ended when nobody remembers it.
    pub unremembered: Unremembered,
}

/// What becomes of something that is found and that nobody remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unremembered {
    /// It surely is ours, and over: it is taken away.
    Ends,
    /// It may be another's, or its time is still to come: it is left alone.
    Stays,
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
    /// Take away something that belongs to nothing stored, from where it was found.
    RemoveOrphan(Site, EnvironmentId),
}

/// Everything a plan looks at.
#[derive(Debug)]
pub struct Situation<'a> {
    /// Every environment that is not gone.
    pub stored: &'a [Environment],
    /// What was found, by where it was looked for. About a place that could not be looked at nothing is concluded.
    pub observed: &'a BTreeMap<Site, Vec<Observed>>,
    /// Environments that somebody is working on right now.
    pub busy: &'a BTreeSet<EnvironmentId>,
    /// How many more may be made now by each engine, besides those that are being made.
    pub places: BTreeMap<EngineKind, usize>,
    /// Since when jobs could renew.
    pub serving_since: ServingSince,
    /// Now.
    pub now: Timestamp,
}

/// What to do, oldest environment first.
pub fn plan(situation: &Situation<'_>) -> Vec<Step> {
    let found: BTreeMap<_, _> = situation
        .observed
        .iter()
        .flat_map(|(site, found)| found.iter().map(move |it| ((site, it.id), &it.condition)))
        .collect();
    let mut free = situation.places.clone();
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
                let engine = environment.resolved.profile.engine;
                if let Some(free) = free.get_mut(&engine).filter(|free| **free > 0) {
                    *free -= 1;
                    steps.push(Step::Provision(id));
                }
            }
            Phase::Ready => steps.extend(broken(environment, situation, &found)),
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
    for (site, found) in situation.observed {
        let orphans = found.iter().filter(|found| {
            found.unremembered == Unremembered::Ends
                && !known.contains(&found.id)
                && !situation.busy.contains(&found.id)
        });
        steps.extend(orphans.map(|found| Step::RemoveOrphan(site.clone(), found.id)));
    }
    steps
}

fn broken(
    environment: &Environment,
    situation: &Situation<'_>,
    found: &BTreeMap<(&Site, EnvironmentId), &Condition>,
) -> Option<Step> {
    let (site, id) = (environment.site()?, environment.id);
    if !situation.observed.contains_key(&site) {
        return None;
    }
    let message = match found.get(&(&site, id)) {
        Some(Condition::Whole) => return None,
        Some(Condition::Broken { message }) => message.clone(),
        None => match environment.resolved.profile.engine {
            EngineKind::Local => {
                "it had disappeared: neither its process nor its data was there".to_owned()
            }
            EngineKind::Namespace => {
                "it had disappeared: its namespace was not on the host any more".to_owned()
            }
        },
    };
    Some(Step::Break(id, EndReason::Failed { message }))
}

#[cfg(test)]
mod tests;
