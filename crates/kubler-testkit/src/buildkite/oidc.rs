//! The rules by which an OIDC token is given to a job, and the claims in it.
//! The same rules serve the HTTP route and [`Job::oidc_token`](super::Job::oidc_token).

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::forge::TokenDraft;
use super::record::Mint;
use super::refusal::Refusal;
use super::world::{JobContext, World};

/// Life of a token when the job asks for none.
pub const OIDC_LIFETIME_SECONDS_DEFAULT: i64 = 300;
/// Longest life an organization allows by default.
pub const OIDC_LIFETIME_SECONDS_MAX: i64 = 7200;

const OPTIONAL_CLAIMS: [&str; 7] = [
    "organization_id",
    "pipeline_id",
    "build_id",
    "cluster_id",
    "cluster_name",
    "queue_id",
    "queue_key",
];
const SUBJECT_CLAIMS: [&str; 7] = [
    "organization_id",
    "pipeline_id",
    "cluster_id",
    "queue_id",
    "build_id",
    "job_id",
    "agent_id",
];
const AGENT_RUNNER_ENVIRONMENT: &str = "self-hosted";

/// What a job asks for. The default asks for nothing, as `oidc request-token` without flags does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct OidcRequest {
    /// Empty: `https://buildkite.com/ORG_SLUG`.
    pub audience: String,
    /// Seconds; 0: 300.
    pub lifetime: i64,
    /// Optional claims by name, `agent_tag:NAME` among them.
    pub claims: Vec<String>,
    /// Claims to repeat as AWS session tags.
    pub aws_session_tags: Vec<String>,
    /// The claim whose bare value becomes `sub`.
    pub subject_claim: String,
}

impl OidcRequest {
    /// What the Kubler plugin asks for: our audience and every id that the broker needs.
    pub fn for_kubler(audience: &str) -> Self {
        Self::for_audience(audience).claims(&[
            "organization_id",
            "pipeline_id",
            "build_id",
            "cluster_id",
            "queue_id",
        ])
    }

    /// Asks for this audience and nothing else.
    pub fn for_audience(audience: &str) -> Self {
        Self {
            audience: audience.into(),
            ..Self::default()
        }
    }

    /// Replaces the optional claims.
    #[must_use]
    pub fn claims(mut self, names: &[&str]) -> Self {
        self.claims = names.iter().map(ToString::to_string).collect();
        self
    }

    /// Asks for a life of so many seconds.
    #[must_use]
    pub fn lifetime(mut self, seconds: i64) -> Self {
        self.lifetime = seconds;
        self
    }

    /// Asks for `sub` to be this claim.
    #[must_use]
    pub fn subject_claim(mut self, name: &str) -> Self {
        self.subject_claim = name.into();
        self
    }

    /// Asks for AWS session tags.
    #[must_use]
    pub fn aws_session_tags(mut self, names: &[&str]) -> Self {
        self.aws_session_tags = names.iter().map(ToString::to_string).collect();
        self
    }
}

/// Gives a token to a job, or says why not; remembers either.
pub(crate) fn mint(
    world: &mut World,
    job_id: Uuid,
    request: &OidcRequest,
    now: Timestamp,
) -> Result<String, Refusal> {
    let context = world.context(job_id);
    let audience = audience(&context, request);
    let outcome = match context.job.state {
        state if state.may_mint() => draft(world, job_id, request, now).map(TokenDraft::sign),
        state => Err(Refusal::unprocessable(format!(
            "job is `{state}`: no OIDC token"
        ))),
    };
    world.job_mut(job_id).mints.push(Mint {
        at: now,
        audience,
        outcome: outcome.clone(),
    });
    outcome
}

/// The honest token of a job, not yet signed, whatever the state of the job.
pub(crate) fn draft(
    world: &World,
    job_id: Uuid,
    request: &OidcRequest,
    now: Timestamp,
) -> Result<TokenDraft, Refusal> {
    let context = world.context(job_id);
    let claims = claims(&context, &world.issuer_url, request, now)?;
    Ok(TokenDraft::honest(
        claims,
        world.keys.current(),
        world.keys.foreign(),
    ))
}

fn claims(
    context: &JobContext<'_>,
    issuer: &str,
    request: &OidcRequest,
    now: Timestamp,
) -> Result<Map<String, Value>, Refusal> {
    let lifetime = match request.lifetime {
        0 => OIDC_LIFETIME_SECONDS_DEFAULT,
        asked @ 1..=OIDC_LIFETIME_SECONDS_MAX => asked,
        asked => {
            return Err(Refusal::unprocessable(format!(
                "lifetime `{asked}` is not between 1 and 7200 seconds"
            )));
        }
    };
    let minted_at = now.as_second();
    let mut claims = Map::new();
    claims.insert("iss".into(), issuer.into());
    claims.insert("sub".into(), subject(context, &request.subject_claim)?);
    claims.insert("aud".into(), audience(context, request).into());
    claims.insert("iat".into(), minted_at.into());
    claims.insert("nbf".into(), minted_at.into());
    claims.insert("exp".into(), (minted_at + lifetime).into());
    claims.insert("jti".into(), Uuid::now_v7().to_string().into());
    claims.extend(default_claims(context));
    if !request.subject_claim.is_empty() {
        let name = request.subject_claim.clone();
        let value = claim_value(context, &name).unwrap_or(Value::Null);
        claims.insert(name, value);
    }
    for name in &request.claims {
        let known = OPTIONAL_CLAIMS.contains(&name.as_str()) || name.starts_with("agent_tag:");
        let value = claim_value(context, name).filter(|_| known);
        let value =
            value.ok_or_else(|| Refusal::unprocessable(format!("unknown claim `{name}`")))?;
        claims.insert(name.clone(), value);
    }
    if !request.aws_session_tags.is_empty() {
        claims.insert(
            "https://aws.amazon.com/tags".into(),
            session_tags(context, &request.aws_session_tags)?,
        );
    }
    Ok(claims)
}

fn audience(context: &JobContext<'_>, request: &OidcRequest) -> String {
    match request.audience.as_str() {
        "" => format!("https://buildkite.com/{}", context.organization.slug),
        asked => asked.to_owned(),
    }
}

fn default_claims(context: &JobContext<'_>) -> Map<String, Value> {
    let names = [
        "organization_slug",
        "pipeline_slug",
        "build_number",
        "build_branch",
        "build_tag",
        "build_commit",
        "step_key",
        "job_id",
        "agent_id",
        "build_source",
        "runner_environment",
    ];
    names
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), claim_value(context, name)?)))
        .collect()
}

/// The value of a claim by its name; `None` for a name that the service does not know.
fn claim_value(context: &JobContext<'_>, name: &str) -> Option<Value> {
    let JobContext {
        organization,
        pipeline,
        build,
        job,
        agent,
    } = context;
    let value = match name {
        "organization_slug" => json!(organization.slug),
        "organization_id" => json!(organization.id.to_string()),
        "pipeline_slug" => json!(pipeline.slug),
        "pipeline_id" => json!(pipeline.id.to_string()),
        "build_id" => json!(build.id.to_string()),
        "build_number" => json!(build.number),
        "build_branch" => json!(build.branch),
        "build_tag" => json!(build.tag),
        "build_commit" => json!(build.commit),
        "build_source" => json!(build.source),
        "step_key" => json!(job.step_key),
        "job_id" => json!(job.id.to_string()),
        "agent_id" => json!(job.agent_id.map(|id| id.to_string())),
        "runner_environment" => json!(AGENT_RUNNER_ENVIRONMENT),
        "cluster_id" => json!(organization.cluster_id.to_string()),
        "cluster_name" => json!(organization.cluster_name),
        "queue_id" => json!(organization.queue_id.to_string()),
        "queue_key" => json!(organization.queue_key),
        other => {
            let tag = other
                .strip_prefix("agent_tag:")
                .filter(|tag| !tag.is_empty())?;
            let mut tags = agent.iter().flat_map(|agent| &agent.tags);
            json!(
                tags.find_map(|pair| pair.split_once('=').filter(|(name, _)| *name == tag))
                    .map(|(_, value)| value)
            )
        }
    };
    Some(value)
}

fn subject(context: &JobContext<'_>, subject_claim: &str) -> Result<Value, Refusal> {
    if subject_claim.is_empty() {
        let JobContext {
            organization,
            pipeline,
            build,
            job,
            ..
        } = context;
        let reference = match &build.tag {
            Some(tag) => format!("refs/tags/{tag}"),
            None => format!("refs/heads/{}", build.branch),
        };
        let step = job.step_key.as_deref().unwrap_or_default();
        return Ok(Value::String(format!(
            "organization:{}:pipeline:{}:ref:{reference}:commit:{}:step:{step}",
            organization.slug, pipeline.slug, build.commit
        )));
    }
    let allowed = SUBJECT_CLAIMS.contains(&subject_claim);
    let value = claim_value(context, subject_claim).filter(|_| allowed);
    value.ok_or_else(|| {
        Refusal::unprocessable(format!("claim `{subject_claim}` cannot be the subject"))
    })
}

/// Values of AWS session tags are always text; null is the empty text.
fn session_tags(context: &JobContext<'_>, names: &[String]) -> Result<Value, Refusal> {
    let mut tags = Map::new();
    for name in names {
        let value = claim_value(context, name);
        let value =
            value.ok_or_else(|| Refusal::unprocessable(format!("unknown session tag `{name}`")))?;
        let text = match value {
            Value::Null => String::new(),
            Value::String(text) => text,
            other => other.to_string(),
        };
        tags.insert(name.clone(), json!([text]));
    }
    Ok(json!({ "principal_tags": tags }))
}
