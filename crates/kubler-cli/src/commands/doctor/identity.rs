//! Whether the server believes who the token says that its caller is. To strangers it does not say why not: what remains
//! is named here, from what the token says.

use std::time::Duration;

use kubler_api::error::ErrorCode;
use serde_json::Value;

use super::LOOK_SECONDS_MAX;
use crate::clock::Deadline;
use crate::commands::doctor::findings::Findings;
use crate::exit::Failure;
use crate::output;
use crate::server::client::Filter;
use crate::server::connected::{Connected, Proof};

/// How a server that does not say why refers to this command.
const OWN_NAME: &str = "kubler doctor";

/// Asks the cheapest question that needs an identity: the environments of this job.
pub fn is_believed(
    connected: &Connected,
    proof: &Proof,
    claims: &Value,
    findings: &mut Findings,
) -> bool {
    let filter = Filter {
        job: claims
            .get("job_id")
            .and_then(Value::as_str)
            .map(str::to_owned),
        ..Filter::default()
    };
    let deadline = Deadline::after(Duration::from_secs(LOOK_SECONDS_MAX));
    let asked = connected
        .client
        .environments(proof.caller(), &filter, deadline);
    match asked.err() {
        Some(failure) if failure.code == Some(ErrorCode::Unauthenticated) => {
            findings.wrong("identity", &unbelieved(failure, connected, claims));
            false
        }
        // Whom policy denies something is known.
        Some(failure) if failure.code != Some(ErrorCode::Denied) => {
            findings.wrong("identity", &failure);
            false
        }
        _ => {
            findings.ok("identity", "the server knows this caller");
            true
        }
    }
}

/// The refusal: in the server's words where it says why, else with everything that may be the cause.
fn unbelieved(failure: Failure, connected: &Connected, claims: &Value) -> Failure {
    let refers_here = |hint: &String| hint.contains(OWN_NAME);
    if !failure.hint.as_ref().is_none_or(refers_here) {
        return failure;
    }
    let claim = |name: &str| {
        let value = claims.get(name).and_then(Value::as_str);
        output::plain(value.unwrap_or("absent"))
    };
    let (audience, url) = (&connected.audience, connected.client.server());
    let of_audience = if audience == url {
        format!("another `audience` than `{audience}`")
    } else {
        format!(
            "another `audience` than `{audience}` (its URL `{url}` is usual: leave out `--audience` and `KUBLER_AUDIENCE`)"
        )
    };
    let hint = format!(
        "the server's configuration may have {of_audience}, no organization with the `id` `{}`, or no `issuer` `{}`; the operator finds which it is with `kubler ledger records`, action `caller.refuse`",
        claim("organization_id"),
        claim("iss"),
    );
    Failure {
        hint: Some(hint),
        ..failure
    }
}
