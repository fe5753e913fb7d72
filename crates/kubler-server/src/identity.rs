//! Proof of who calls: OIDC tokens of configured issuers, checked by every rule we know, mapped to one identity.
//!
//! A token is a secret until it is refused, and after that too: nothing here prints, stores or returns one. All
//! that is said of it is said in codes and in claims whose signature was checked.
//!
//! A verification computes for some tens of microseconds without waiting, so no more of them run at once than
//! there are threads. Only tokens that name an unknown key ever wait, and those are counted.

mod address;
mod fetch;
mod jwks;
mod keys;
mod names;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use kubler_core::configuration::{self, Configuration, IssuerKind};
use kubler_core::identity::claims::{ClaimFault, Claims};
use kubler_core::identity::token::{Standing, UnverifiedToken, algorithms, check_audience};
use kubler_core::identity::{Identity, buildkite};
use kubler_core::ids::TokenDigest;
use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::sync::CancellationToken;

pub use kubler_core::identity::VerifiedToken;
pub use kubler_core::identity::refusal::RefusalReason;

use crate::clock::Clock;
use fetch::Fetcher;
pub use keys::KeyHealth;
use keys::{KEYS_REFRESH_SECONDS, Keys};
use names::Names;

/// The issuers cannot be used as they are configured.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Everybody would be let in, or somebody else's tokens.
    #[error("issuer `{issuer}` has no audience of its own")]
    Audience {
        /// The issuer's URL.
        issuer: String,
    },
    /// Keys can only be fetched over https, from a plain origin.
    #[error("`{issuer}` is not the URL of an issuer: `https://name[:port][/path]`")]
    Url {
        /// The issuer's URL.
        issuer: String,
    },
    /// The issuer's CA file cannot be used.
    #[error("the CA file `{}` of issuer `{issuer}` cannot be read", path.display())]
    Ca {
        /// The issuer's URL.
        issuer: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No client for the issuer's keys.
    #[error("no connection to issuer `{issuer}` can be set up")]
    Client {
        /// The issuer's URL.
        issuer: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
}

/// A token that was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why, as a stable code.
    pub reason: RefusalReason,
    /// More words for the ledger: which claim, for instance. Never from an unsigned part of a token.
    pub detail: Option<String>,
    /// Who it would have been: only when the signature was right and every claim was there.
    pub identity: Option<Box<Identity>>,
    /// The listed organization that a validly signed token for our audience is of.
    pub listed: Option<Box<ListedOrganization>>,
    /// What the caller may be told: only when the organization is listed.
    pub disclosed: Option<Disclosed>,
    /// Seconds by which the issuer's clock and ours are seen to differ, for the ledger and never for the caller.
    pub clock_skew_seconds: i64,
}

/// One of the organizations that the configuration lists.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListedOrganization {
    /// The issuer's URL.
    pub issuer: String,
    /// The organization's id.
    pub id: String,
}

/// What a caller may be told about a refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disclosed {
    /// What is wrong.
    pub detail: String,
    /// What to do.
    pub hint: String,
}

impl Refusal {
    const fn unexplained(reason: RefusalReason) -> Self {
        Self {
            reason,
            detail: None,
            identity: None,
            listed: None,
            disclosed: None,
            clock_skew_seconds: 0,
        }
    }
}

impl From<RefusalReason> for Refusal {
    fn from(reason: RefusalReason) -> Self {
        Self::unexplained(reason)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.detail {
            Some(detail) => write!(f, "{}: {detail}", self.reason),
            None => fmt::Display::fmt(&self.reason, f),
        }
    }
}

/// Verifies identity tokens. Cheap to clone.
#[derive(Clone)]
pub struct Verifier {
    issuers: Arc<ArcSwap<Issuers>>,
    names: Arc<Names>,
    clock: Arc<dyn Clock>,
}

/// The configured issuers, ready to be trusted.
pub struct Issuers(Vec<Trusted>);

/// One configured issuer: nothing else is ever trusted, and nothing else is ever asked for keys.
struct Trusted {
    settings: configuration::Issuer,
    validation: Validation,
    keys: Keys,
}

/// What the library says of the standard claims of a validly signed token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claimed {
    Accepted,
    /// Our own check says why, and if it does not, the token is refused all the same.
    NotAccepted,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let issuers = self.issuers.load();
        let urls: Vec<_> = issuers
            .0
            .iter()
            .map(|issuer| issuer.settings.url.as_str())
            .collect();
        f.debug_struct("Verifier")
            .field("issuers", &urls)
            .finish_non_exhaustive()
    }
}

impl Verifier {
    /// Trusts nobody before issuers are installed.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            issuers: Arc::new(ArcSwap::from_pointee(Issuers(Vec::new()))),
            names: Arc::default(),
            clock,
        }
    }

    /// Reads what `configuration` says of issuers; files named there count from `folder`. Changes and fetches nothing. Who
    /// is trusted already keeps the keys that were fetched, so that nobody waits for them; they are fetched anew soon.
    ///
    /// # Errors
    /// An issuer that cannot be used: no audience, no https, an unreadable CA.
    pub fn prepare(
        &self,
        configuration: &Configuration,
        folder: &Path,
    ) -> Result<Issuers, IdentityError> {
        let known = self.issuers.load();
        let trusted = |settings: &configuration::Issuer| {
            let trusted = Trusted::new(settings, folder, Arc::clone(&self.clock))?;
            if let Some(known) = known.0.iter().find(|it| it.gets_keys_like(settings)) {
                trusted.keys.inherit(&known.keys);
            }
            Ok(trusted)
        };
        let issuers: Result<Vec<_>, _> = configuration.issuers.iter().map(trusted).collect();
        Ok(Issuers(issuers?))
    }

    /// Trusts these issuers from now on, and no others.
    pub fn install(&self, issuers: Issuers) {
        self.issuers.store(Arc::new(issuers));
    }

    /// Verifies a token. Waits only when its key is unknown, for one fetch of the issuer's keys at most.
    ///
    /// # Errors
    /// A refusal; one uniform answer for all of them is the caller's duty (rule T10).
    pub async fn verify(&self, token: &SecretString) -> Result<VerifiedToken, Refusal> {
        let text = token.expose_secret();
        let unverified = UnverifiedToken::parse(text)?;
        let issuers = self.issuers.load_full();
        let issuer = issuers.trusted(&unverified)?;
        let key = issuer.keys.find(unverified.key_id.as_deref()).await?;
        let library = issuer.check_signature(text, &key)?;

        let verified =
            issuer.check_claims(&unverified.claims, TokenDigest::of(text), self.clock.now())?;
        if library == Claimed::NotAccepted {
            return Err(RefusalReason::ClaimMalformed.into());
        }
        for moved in self.names.seen(&verified.identity) {
            tracing::warn!(issuer = %issuer.settings.url, %moved, "a name belongs to another id than before");
        }
        Ok(verified)
    }

    /// Fetches all issuers' keys, so that the first job does not wait for them. Failures are logged and tried
    /// again when a token needs the keys.
    pub async fn prefetch(&self) {
        let issuers = self.issuers.load_full();
        let fetches = issuers.0.iter().map(|issuer| issuer.keys.refresh());
        futures_util::future::join_all(fetches).await;
    }

    /// Fetches all issuers' keys now and every few minutes until `shutdown`, so that no job ever waits for them.
    pub async fn keep_fresh(&self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(Duration::from_secs(KEYS_REFRESH_SECONDS));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            self.prefetch().await;
        }
    }

    /// How the keys of each issuer are, in the configuration's order.
    pub fn health(&self) -> Vec<KeyHealth> {
        let issuers = self.issuers.load();
        issuers.0.iter().map(|it| it.keys.health()).collect()
    }
}

impl Issuers {
    /// The issuer a token claims to be of, by exact match, if it may use the token's algorithm.
    fn trusted(&self, token: &UnverifiedToken<'_>) -> Result<&Trusted, RefusalReason> {
        let url = token.issuer().ok_or(RefusalReason::Issuer)?;
        let issuer = self
            .0
            .iter()
            .find(|issuer| issuer.settings.url == url)
            .ok_or(RefusalReason::Issuer)?;
        let allowed = algorithms(issuer.settings.kind).contains(&token.algorithm.as_str());
        if allowed {
            Ok(issuer)
        } else {
            Err(RefusalReason::Algorithm)
        }
    }
}

impl Trusted {
    /// Whether keys for these settings come from the same place, on the same trust.
    fn gets_keys_like(&self, settings: &configuration::Issuer) -> bool {
        let of = |it: &configuration::Issuer| {
            (
                it.kind,
                it.url.clone(),
                it.ca.clone(),
                it.allow_private_addresses,
            )
        };
        of(&self.settings) == of(settings)
    }

    fn new(
        settings: &configuration::Issuer,
        folder: &Path,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, IdentityError> {
        if settings.audience.trim().is_empty() {
            return Err(IdentityError::Audience {
                issuer: settings.url.clone(),
            });
        }
        let fetcher = Fetcher::new(settings, folder)?;
        Ok(Self {
            validation: validation(settings),
            keys: Keys::new(fetcher, algorithms(settings.kind), clock),
            settings: settings.clone(),
        })
    }

    /// The library checks the signature, and that the standard claims are there and are ours. Then we check the
    /// claims again with types of our own: both must agree.
    fn check_signature(&self, token: &str, key: &DecodingKey) -> Result<Claimed, RefusalReason> {
        match jsonwebtoken::decode::<serde::de::IgnoredAny>(token, key, &self.validation) {
            Ok(_) => Ok(Claimed::Accepted),
            Err(error) => match error.kind() {
                ErrorKind::InvalidAudience
                | ErrorKind::MissingRequiredClaim(_)
                | ErrorKind::InvalidClaimFormat(_) => Ok(Claimed::NotAccepted),
                _ => Err(RefusalReason::Signature),
            },
        }
    }

    fn check_claims(
        &self,
        claims: &Claims,
        digest: TokenDigest,
        now: jiff::Timestamp,
    ) -> Result<VerifiedToken, Refusal> {
        check_audience(claims, &self.settings)?;
        let identity = match self.settings.kind {
            IssuerKind::Buildkite => buildkite::identity_from_claims(claims, &self.settings),
        };
        let listed = match self.settings.kind {
            IssuerKind::Buildkite => buildkite::listed_organization(claims, &self.settings),
        };
        let listed = listed.map(|organization| {
            Box::new(ListedOrganization {
                issuer: self.settings.url.clone(),
                id: organization.id.clone(),
            })
        });
        let faulty = |fault: ClaimFault| claim_refusal(&fault, listed.clone());
        let standing = Standing::read(claims).map_err(faulty)?;
        if let Err(reason) = standing.check(&self.settings, now) {
            return Err(Refusal {
                reason,
                detail: None,
                identity: identity.ok().map(Box::new),
                disclosed: listed.is_some().then(|| self.explain(reason)),
                listed,
                clock_skew_seconds: standing.clock_skew_seconds(now),
            });
        }
        Ok(VerifiedToken {
            identity: identity.map_err(faulty)?,
            digest,
            token_id: standing.token_id,
            issued_at: standing.issued_at,
            expires_at: standing.expires_at,
        })
    }

    /// What the job is told about the time of its token. Not by how much clocks differ: that is nobody's business.
    fn explain(&self, reason: RefusalReason) -> Disclosed {
        let hint = match reason {
            RefusalReason::LifeTooLong => {
                format!(
                    "request it with `--lifetime {}` or without `--lifetime`",
                    self.settings.token_seconds_max
                )
            }
            RefusalReason::NotYetValid => "a clock is wrong: tell the operator".into(),
            _ => "request a fresh token for each call".into(),
        };
        Disclosed {
            detail: reason.to_string(),
            hint,
        }
    }
}

fn claim_refusal(fault: &ClaimFault, listed: Option<Box<ListedOrganization>>) -> Refusal {
    let reason = match fault {
        ClaimFault::NotAskedFor { .. } | ClaimFault::Missing { .. } => RefusalReason::ClaimMissing,
        ClaimFault::Malformed { .. } => RefusalReason::ClaimMalformed,
        ClaimFault::OrganizationNotListed { .. } => RefusalReason::Organization,
    };
    let detail = match fault {
        ClaimFault::OrganizationNotListed { id } => id.clone(),
        other => other.to_string(),
    };
    let disclosed = listed.is_some().then(|| Disclosed {
        detail: fault.to_string(),
        hint: fault.hint(),
    });
    Refusal {
        reason,
        detail: Some(detail),
        identity: None,
        listed,
        disclosed,
        clock_skew_seconds: 0,
    }
}

/// Every default of the library that matters is set here by hand. It reads the machine's clock, so times are
/// left to [`Standing::check`], which is given ours.
fn validation(settings: &configuration::Issuer) -> Validation {
    let mut validation = Validation::new(match settings.kind {
        IssuerKind::Buildkite => Algorithm::RS256,
    });
    validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud", "sub"]);
    validation.set_issuer(&[&settings.url]);
    validation.set_audience(&[&settings.audience]);
    validation.leeway = settings.clock_skew_seconds;
    validation.validate_aud = true;
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation
}

#[cfg(test)]
mod tests;
