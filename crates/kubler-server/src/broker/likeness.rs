//! The same again, or what differs: what an environment was made of is kept with its tombstone.

use kubler_api::CreateEnvironment;
use kubler_core::difference::{self, Difference};
use kubler_core::environment::Environment;
use kubler_core::ids::EnvironmentId;
use kubler_core::ledger::record::{Body, Kind, LedgerAction};
use kubler_core::profile::ResolvedProfile;

use super::{Broker, BrokerError, Call, Result};

/// Two environments, and what is not the same in them.
pub struct Compared {
    /// The first.
    pub before: Environment,
    /// The second.
    pub after: Environment,
    /// What differs.
    pub differences: Vec<Difference>,
}

impl Broker {
    /// What differs in two environments that the caller may see, alive or dead.
    ///
    /// # Errors
    /// `NotFound` also when one exists but is none of the caller's business.
    pub async fn differences(
        &self,
        call: &Call,
        id: EnvironmentId,
        other: EnvironmentId,
    ) -> Result<Compared> {
        let action = LedgerAction::EnvironmentRead;
        self.recorded(call, action, Some(id), async |body| {
            body.details
                .insert("other".into(), other.to_string().into());
            let before = self.readable(call, body, id).await?;
            let after = self.readable(call, body, other).await?;
            Ok(Compared {
                differences: difference::environments(&before, &after),
                before,
                after,
            })
        })
        .await
    }

    /// Whether what the caller would get is what it wants again. Nothing is wanted again by most.
    pub(super) async fn is_alike(
        &self,
        call: &Call,
        request: &CreateEnvironment,
        offered: &ResolvedProfile,
    ) -> Result<()> {
        let Some(like) = &request.like else {
            return Ok(());
        };
        let id: EnvironmentId = like.parse().map_err(|_| BrokerError::no_such_like(like))?;
        // A question of its own: what it says of policy is not the decision on the request.
        let mut aside = Body::new(Kind::Event, LedgerAction::EnvironmentRead);
        let wanted = self.readable(call, &mut aside, id).await?.resolved;
        if wanted.digest() == offered.digest() || request.despite_differences {
            return Ok(());
        }
        let differences = difference::resolved(&wanted, offered);
        Err(BrokerError::differs(id, &differences))
    }
}
