//! Finding environments by whatever somebody has at hand: an id, a job, a build, a pipeline, a commit, an image.

use std::collections::HashMap;

use kubler_core::artifact::ImageQuery;
use kubler_core::environment::Environment;
use kubler_core::ids::EnvironmentId;
use kubler_core::ledger::record::LedgerAction;
use kubler_core::policy::{Action, Target};

use super::{Broker, BrokerError, Call, Who};
use crate::store::{Attached, Images, Place, SEARCH_MAX, SEARCH_PAGE, Search};

/// Most pages that one search looks through for environments that its caller may see.
const SEARCH_PAGES_MAX: usize = 50;

/// What a search found.
#[derive(Debug, Default)]
pub struct Found {
    /// Newest first, at most [`SEARCH_MAX`].
    pub environments: Vec<Environment>,
    /// There are more, or may be: not everything was looked at.
    pub truncated: bool,
    /// The jobs that attached to each of them.
    pub attached: HashMap<EnvironmentId, Vec<Attached>>,
    /// The images that each of them was asked to run.
    pub images: HashMap<EnvironmentId, Images>,
}

impl Broker {
    /// The environments that match, newest first, without those the caller may not see. A job is shown its own
    /// pipeline's only.
    ///
    /// # Errors
    /// `Unavailable` when the store cannot be read.
    pub async fn search(&self, call: &Call, search: &Search) -> Result<Found, BrokerError> {
        self.recorded(call, LedgerAction::TraceRead, None, async |body| {
            self.decide(call, body, Action::ReadTrace, Target::Server)?;
            let found = self
                .with_jobs(self.visible(call, search.clone()).await?)
                .await?;
            match search.image {
                Some(_) => self.with_images(found).await,
                None => Ok(found),
            }
        })
        .await
    }

    /// The environments that one word means: its most exact meaning that finds any.
    ///
    /// # Errors
    /// `Unavailable` when the store cannot be read; `NotFound` for the id of an environment that the caller may not see.
    pub async fn trace(&self, call: &Call, anything: &str) -> Result<Found, BrokerError> {
        if let Ok(id) = anything.parse::<EnvironmentId>() {
            let (environment, attached) = self.environment(call, id).await?;
            let environments = vec![environment];
            return Ok(Found {
                images: self.store.images(&environments).await?,
                environments,
                attached: HashMap::from([(id, attached)]),
                truncated: false,
            });
        }
        self.recorded(call, LedgerAction::TraceRead, None, async |body| {
            self.decide(call, body, Action::ReadTrace, Target::Server)?;
            for search in meanings(anything) {
                let found = self.visible(call, search).await?;
                if !found.environments.is_empty() {
                    return self.with_images(self.with_jobs(found).await?).await;
                }
            }
            Ok(Found::default())
        })
        .await
    }

    async fn with_jobs(&self, mut found: Found) -> Result<Found, BrokerError> {
        found.attached = self.store.attached(&found.environments).await?;
        Ok(found)
    }

    async fn with_images(&self, mut found: Found) -> Result<Found, BrokerError> {
        found.images = self.store.images(&found.environments).await?;
        Ok(found)
    }

    async fn visible(&self, call: &Call, mut search: Search) -> Result<Found, BrokerError> {
        if let Who::Job(token) = &call.who {
            let owner = token.identity.owner();
            search.organization_id = Some(owner.organization_id);
            search.project_id = Some(owner.project_id);
        }
        let policies = self.policies.current();
        let caller = call.caller();
        let visible = |environment: &Environment| {
            let target = Target::Environment(Box::new(environment.clone()));
            policies
                .decide(&caller, Action::ReadEnvironment, target)
                .is_ok()
        };
        let (mut found, mut after) = (Found::default(), None);
        for _ in 0..SEARCH_PAGES_MAX {
            let page = self.store.search(&search, after).await?;
            after = page.last().map(Place::after);
            let is_last = page.len() < SEARCH_PAGE;
            found.environments.extend(page.into_iter().filter(visible));
            if found.environments.len() > SEARCH_MAX {
                found.environments.truncate(SEARCH_MAX);
                break;
            }
            if is_last {
                return Ok(found);
            }
        }
        found.truncated = true;
        Ok(found)
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
    // `pipeline/5`, also with the organization before it, as tables show it.
    if let Some((pipeline, number)) = text.rsplit_once(['/', '#'])
        && let Ok(number) = number.parse()
    {
        meanings.push(one(&|search| {
            search.name_pipeline(pipeline);
            search.build_number = Some(number);
        }));
    }
    if let Ok(number) = text.parse() {
        meanings.push(one(&|search| search.build_number = Some(number)));
    }
    meanings.push(one(&|search| search.job_id = Some(text.to_owned())));
    meanings.push(one(&|search| search.build_id = Some(text.to_owned())));
    meanings.push(one(&|search| search.name_pipeline(text)));
    if text.len() >= 7 {
        meanings.push(one(&|search| search.commit = Some(text.to_owned())));
    }
    if let Some(image) = ImageQuery::parse(text) {
        let anywhere = image.clone().anywhere();
        for image in [Some(image.exactly()), anywhere].into_iter().flatten() {
            meanings.push(one(&|search| search.image = Some(image.clone())));
        }
    }
    meanings
}
