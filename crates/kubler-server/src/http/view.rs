//! An environment as its job sees it: the wire form, the hooks and the kubeconfig.

use kubler_api::{
    AttachedJob, End, Environment as Wire, Gateway, Hook, Hooks, Owner, Phase as WirePhase,
    Scope as WireScope, Tombstone as WireTombstone, paths,
};
use kubler_core::configuration::Configuration;
use kubler_core::environment::{EndReason, Environment, Phase, Scope};
use kubler_core::text::UntrustedText;
use kubler_core::tombstone::Tombstone;

use crate::store::Attached;

/// The wire form.
pub(super) fn environment(
    environment: &Environment,
    configuration: &Configuration,
    ca: Option<&str>,
) -> Wire {
    let id = environment.id.to_string();
    let gateway = Gateway {
        url: format!("{}{}", configuration.url, paths::gateway(&id)),
        ca: ca.map(str::to_owned),
    };
    Wire {
        name: environment.name.clone(),
        scope: match environment.scope {
            Scope::Job => WireScope::Job,
            Scope::Build => WireScope::Build,
        },
        phase: phase(environment.phase),
        profile: environment.resolved.profile.name.clone(),
        engine: environment.resolved.profile.engine.as_str().into(),
        kubernetes_version: kubernetes_version(environment),
        host: environment.placement.as_ref().map(|it| it.host.clone()),
        namespace: environment.namespace().map(str::to_owned),
        digest: environment.digest.clone(),
        owner: owner(environment),
        attached: Vec::new(),
        images: Vec::new(),
        images_truncated: false,
        created_at: environment.created_at,
        ready_at: environment.ready_at,
        lease_end: environment.lease_end,
        lease_seconds: environment.resolved.profile.lease_seconds,
        deadline: environment.deadline,
        end: environment.reason.as_ref().map(end),
        last_failure: None,
        dead_at: environment.dead_at,
        gone_at: environment.gone_at,
        hooks: hooks(&id, environment, configuration, &gateway),
        kubeconfig: kubeconfig(&id, environment, configuration, &gateway),
        gateway,
        id,
    }
}

/// On a host cluster it is the host's, which may be upgraded while the environment lives.
fn kubernetes_version(environment: &Environment) -> String {
    match &environment.placement {
        Some(placement) => placement.kubernetes_version.clone(),
        None => environment.resolved.kubernetes_version.clone(),
    }
}

/// A job that attached.
pub(super) fn attached(attached: &Attached) -> AttachedJob {
    AttachedJob {
        job_id: attached.job_id.clone(),
        step_key: attached.step_key.clone(),
        agent_id: attached.agent_id.clone(),
        url: attached.url.clone(),
        attached_at: attached.attached_at,
    }
}

/// The little that anybody may know of a dead environment.
pub(super) fn tombstone(tombstone: &Tombstone) -> WireTombstone {
    WireTombstone {
        id: tombstone.id.to_string(),
        ended_at: tombstone.ended_at,
        gone: tombstone.is_gone,
        end: end(&tombstone.reason),
        run_url: tombstone.run_url.clone(),
    }
}

const fn phase(phase: Phase) -> WirePhase {
    match phase {
        Phase::Requested => WirePhase::Requested,
        Phase::Provisioning => WirePhase::Provisioning,
        Phase::Ready => WirePhase::Ready,
        Phase::Failed => WirePhase::Failed,
        Phase::Releasing => WirePhase::Releasing,
        Phase::Gone => WirePhase::Gone,
    }
}

fn end(reason: &EndReason) -> End {
    End {
        code: reason.code().into(),
        message: reason.sentence(),
    }
}

fn owner(environment: &Environment) -> Owner {
    let identity = &environment.identity;
    let text = |text: &Option<UntrustedText>| text.as_ref().map(ToString::to_string);
    Owner {
        issuer: identity.issuer.clone(),
        organization_id: identity.organization.id.clone(),
        organization: identity.organization.slug.clone(),
        pipeline_id: identity.project.id.clone(),
        pipeline: identity.project.slug.clone(),
        build_id: identity.run.id.clone(),
        build_number: identity.run.number,
        job_id: identity.job.id.clone(),
        step_key: text(&identity.job.step_key),
        branch: text(&identity.source.branch),
        commit: identity.source.commit.to_string(),
        url: identity.job.url.clone(),
    }
}

/// A third of the lease: two renewals may fail before anything lapses.
const RENEWALS_PER_LEASE: u64 = 3;

fn hooks(
    id: &str,
    environment: &Environment,
    configuration: &Configuration,
    gateway: &Gateway,
) -> Hooks {
    let post = |path: String, command: String| Hook {
        method: "POST".into(),
        url: format!("{}{path}", configuration.url),
        command,
        every_seconds: None,
    };
    let lease_seconds = environment.resolved.profile.lease_seconds;
    Hooks {
        deploy: Hook {
            method: "ANY".into(),
            url: gateway.url.clone(),
            command: "kubectl apply -f FILE".into(),
            every_seconds: None,
        },
        credential: post(
            paths::TOKEN.into(),
            format!("kubler credential --environment {id}"),
        ),
        renew: Hook {
            every_seconds: Some((lease_seconds / RENEWALS_PER_LEASE).clamp(1, 75)),
            ..post(paths::renew(id), format!("kubler env renew {id}"))
        },
        teardown: post(paths::release(id), format!("kubler env release {id}")),
    }
}

/// No secret is in it: the exec plugin gets a session when kubectl needs one.
fn kubeconfig(
    id: &str,
    environment: &Environment,
    configuration: &Configuration,
    gateway: &Gateway,
) -> String {
    use base64::Engine as _;
    let mut cluster = serde_json::json!({ "server": gateway.url });
    if let (Some(ca), Some(cluster)) = (&gateway.ca, cluster.as_object_mut()) {
        let encoded = base64::engine::general_purpose::STANDARD.encode(ca);
        cluster.insert("certificate-authority-data".into(), encoded.into());
    }
    let issuer = configuration.issuer(&environment.identity.issuer);
    let audience = issuer.map_or(configuration.url.as_str(), |issuer| {
        issuer.audience.as_str()
    });
    let document = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "kubler", "cluster": cluster }],
        "contexts": [{ "name": "kubler", "context": { "cluster": "kubler", "user": "kubler", "namespace": environment.namespace().unwrap_or("default") } }],
        "current-context": "kubler",
        "users": [{ "name": "kubler", "user": { "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "kubler",
            "args": ["credential", "--server", configuration.url, "--audience", audience, "--environment", id],
            "interactiveMode": "Never",
            "provideClusterInfo": true,
            "installHint": "the `kubler` command gets the short-lived credential for this environment; put it on PATH",
        } } }],
    });
    serde_json::to_string_pretty(&document).unwrap_or_default()
}

/// A drift on the wire.
pub(super) fn drift(drift: crate::engine::namespace::drift::Drift) -> kubler_api::Drift {
    use crate::engine::namespace::drift::Answered;
    let (answer, message) = match drift.answer {
        Answered::Repaired => ("repaired", None),
        Answered::Reported => ("reported", None),
        Answered::Failed(message) => ("failed", Some(message)),
    };
    let changes = drift.changes.into_iter();
    let changes = changes.map(|change| kubler_api::DriftChange {
        path: change.path,
        applied: change.applied,
        found: change.found,
    });
    kubler_api::Drift {
        object: drift.object,
        found_at: drift.found_at,
        changes: changes.collect(),
        by: drift.by.map(|by| kubler_api::DriftAuthor {
            manager: by.manager,
            operation: by.operation,
            at: by.at,
        }),
        answer: answer.into(),
        message,
    }
}
