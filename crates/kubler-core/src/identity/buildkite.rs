//! Buildkite's claims as an identity.
//!
//! Only discrete claims with strict types: `sub` is a composite of free text whose shape the job chooses, so it
//! is never read. Ids are UUIDs and say who; slugs, branch, tag, commit and step key are words of people.

use super::claims::{self, ClaimFault, Claims};
use super::{Identity, Job, Named, Run, Runner, Source};
use crate::configuration::{Issuer, Organization};
use crate::text::UntrustedText;

/// Claims that a job must ask for, because Buildkite leaves them out otherwise.
pub const CLAIMS_TO_ASK_FOR: [&str; 3] = ["organization_id", "pipeline_id", "build_id"];
/// Longest word of Buildkite's own (slug, trigger, kind of runner) that is accepted, in bytes.
const WORD_BYTES_MAX: usize = 256;

/// Maps claims, whose signature was checked, to an identity of a listed organization.
///
/// # Errors
/// A claim that is absent or malformed, or an organization that is not listed for this issuer.
pub fn identity_from_claims(claims: &Claims, issuer: &Issuer) -> Result<Identity, ClaimFault> {
    let not_asked_for: Vec<_> = CLAIMS_TO_ASK_FOR
        .into_iter()
        .filter(|name| claims.get(*name).is_none_or(serde_json::Value::is_null))
        .collect();
    if !not_asked_for.is_empty() {
        return Err(ClaimFault::NotAskedFor {
            names: not_asked_for,
            required: &CLAIMS_TO_ASK_FOR,
        });
    }
    let organization_id = claims::required_uuid(claims, "organization_id")?;
    let Some(listed) = issuer.organization(&organization_id) else {
        return Err(ClaimFault::OrganizationNotListed {
            id: organization_id,
        });
    };
    let pipeline_slug = word(claims, "pipeline_slug")?;
    let number = claims::required_number(claims, "build_number")?;
    let job_id = claims::required_uuid(claims, "job_id")?;
    let run_url = run_url(listed, &pipeline_slug, number);
    Ok(Identity {
        issuer: issuer.url.clone(),
        organization: Named {
            id: organization_id,
            slug: word(claims, "organization_slug")?,
        },
        project: Named {
            id: claims::required_uuid(claims, "pipeline_id")?,
            slug: pipeline_slug,
        },
        run: Run {
            id: claims::required_uuid(claims, "build_id")?,
            number,
            url: run_url.clone(),
        },
        job: Job {
            url: format!("{run_url}#{job_id}"),
            id: job_id,
            step_key: claims::untrusted(claims, "step_key")?,
        },
        source: Source {
            branch: claims::untrusted(claims, "build_branch")?,
            tag: claims::untrusted(claims, "build_tag")?,
            commit: UntrustedText::new(claims::required_text(claims, "build_commit")?),
            trigger: word(claims, "build_source")?,
        },
        runner: Runner {
            environment: word(claims, "runner_environment")?,
            agent_id: claims::required_uuid(claims, "agent_id")?,
            cluster_id: claims::uuid(claims, "cluster_id")?,
            queue_id: claims::uuid(claims, "queue_id")?,
            queue_key: claims::untrusted(claims, "queue_key")?,
        },
    })
}

/// The listed organization of a validly signed token of this issuer: such a token may be told why it was refused. By
/// id when the token has one; a token that was made without the id is known by its slug, which is good enough
/// for a hint and for nothing else.
pub fn listed_organization<'a>(claims: &Claims, issuer: &'a Issuer) -> Option<&'a Organization> {
    match (
        claims::text(claims, "organization_id"),
        claims::text(claims, "organization_slug"),
    ) {
        (Ok(Some(id)), _) => issuer.organization(id),
        (Ok(None), Ok(Some(slug))) => issuer
            .organizations
            .iter()
            .find(|listed| listed.slug == slug),
        _ => None,
    }
}

/// The page of a build. The organization's slug is the operator's, so that no token decides where a link leads.
fn run_url(organization: &Organization, pipeline_slug: &str, number: u64) -> String {
    let pipeline = path_segment(pipeline_slug);
    format!(
        "https://buildkite.com/{}/{pipeline}/builds/{number}",
        path_segment(&organization.slug)
    )
}

fn path_segment(slug: &str) -> String {
    let safe: String = slug
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') {
                c
            } else {
                '-'
            }
        })
        .collect();
    if safe.is_empty() { "-".into() } else { safe }
}

/// A word that Buildkite itself chose: printable ASCII without spaces.
fn word(claims: &Claims, name: &'static str) -> Result<String, ClaimFault> {
    let word = claims::required_text(claims, name)?;
    let fits = word.len() <= WORD_BYTES_MAX && word.bytes().all(|byte| byte.is_ascii_graphic());
    if fits {
        Ok(word.to_owned())
    } else {
        Err(ClaimFault::Malformed {
            name,
            expected: "a short word",
        })
    }
}

#[cfg(test)]
mod tests;
