//! Finding environments by whatever somebody has at hand: an id, a job, a build, a pipeline, a commit.

use kubler_core::environment::Environment;
use kubler_core::ids::EnvironmentId;
use kubler_core::ledger::record::LedgerAction;
use kubler_core::policy::{Action, Target};

use super::{Broker, BrokerError, Call};
use crate::store::Search;

impl Broker {
    /// The environments that match, newest first, without those the caller may not see.
    ///
    /// # Errors
    /// `Unavailable` when the store cannot be read.
    pub async fn search(
        &self,
        call: &Call,
        search: &Search,
    ) -> Result<Vec<Environment>, BrokerError> {
        self.recorded(call, LedgerAction::TraceRead, None, async |body| {
            self.decide(call, body, Action::ReadTrace, Target::Server)?;
            self.visible(call, search).await
        })
        .await
    }

    /// The environments that one word means: its most exact meaning that finds any.
    ///
    /// # Errors
    /// `Unavailable` when the store cannot be read; `NotFound` for the id of an environment that the caller may not see.
    pub async fn trace(
        &self,
        call: &Call,
        anything: &str,
    ) -> Result<Vec<Environment>, BrokerError> {
        if let Ok(id) = anything.parse::<EnvironmentId>() {
            return Ok(vec![self.environment(call, id).await?]);
        }
        self.recorded(call, LedgerAction::TraceRead, None, async |body| {
            self.decide(call, body, Action::ReadTrace, Target::Server)?;
            for search in meanings(anything) {
                let found = self.visible(call, &search).await?;
                if !found.is_empty() {
                    return Ok(found);
                }
            }
            Ok(Vec::new())
        })
        .await
    }

    async fn visible(&self, call: &Call, search: &Search) -> Result<Vec<Environment>, BrokerError> {
        let found = self.store.search(search).await?;
        let policies = self.policies.current();
        let caller = call.caller();
        let visible = |environment: &Environment| {
            let target = Target::Environment(Box::new(environment.clone()));
            policies
                .decide(&caller, Action::ReadEnvironment, target)
                .is_ok()
        };
        Ok(found.into_iter().filter(visible).collect())
    }
}

/// What somebody may mean who types one word, most exact first.
fn meanings(anything: &str) -> Vec<Search> {
    let text = anything.trim();
    let one = |change: &dyn Fn(&mut Search)| {
        let mut search = Search::default();
        change(&mut search);
        search
    };
    let mut meanings = Vec::new();
    if let Some((pipeline, number)) = text.rsplit_once(['/', '#'])
        && let Ok(number) = number.parse()
    {
        meanings.push(one(&|search| {
            search.pipeline = Some(pipeline.to_owned());
            search.build_number = Some(number);
        }));
    }
    if let Ok(number) = text.parse() {
        meanings.push(one(&|search| search.build_number = Some(number)));
    }
    meanings.push(one(&|search| search.job_id = Some(text.to_owned())));
    meanings.push(one(&|search| search.build_id = Some(text.to_owned())));
    meanings.push(one(&|search| search.pipeline = Some(text.to_owned())));
    if text.len() >= 7 {
        meanings.push(one(&|search| search.commit = Some(text.to_owned())));
    }
    meanings
}
