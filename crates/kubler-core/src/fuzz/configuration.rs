//! The configuration file. The input is its text.

use crate::configuration::{Configuration, canonical_organization_id};
use crate::profile::EngineKind;

pub(super) fn configuration(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else {
        return false;
    };
    let Ok(read) = serde_saphyr::from_str::<Configuration>(text) else {
        return false;
    };
    // Written anew it is read as the same, so that no key is read and forgotten.
    let written = serde_json::to_string(&read).expect("a configuration can be written");
    assert_eq!(
        serde_json::from_str::<Configuration>(&written)
            .ok()
            .as_ref(),
        Some(&read)
    );
    let faults = read.faults();
    for fault in &faults {
        assert!(!fault.key.is_empty() && !fault.message.is_empty() && !fault.hint.is_empty());
    }
    if faults.is_empty() {
        holds(&read);
    }
    faults.is_empty()
}

/// What everything behind the check relies on.
fn holds(configuration: &Configuration) {
    assert!(configuration.url.starts_with("https://"));
    assert!(!configuration.issuers.is_empty() && !configuration.profiles.is_empty());
    for issuer in &configuration.issuers {
        assert!(issuer.url.starts_with("https://") && !issuer.audience.trim().is_empty());
        assert!(issuer.clock_skew_seconds <= 60 && issuer.token_seconds_max <= 600);
        assert!(!issuer.organizations.is_empty());
        for organization in &issuer.organizations {
            let canonical = canonical_organization_id(&organization.id);
            assert_eq!(canonical.as_deref(), Some(organization.id.as_str()));
        }
    }
    for profile in &configuration.profiles {
        match profile.engine {
            EngineKind::Local => {
                assert!(configuration.kubernetes.contains_key(&profile.kubernetes));
            }
            EngineKind::Namespace => {
                assert!(!configuration.hosts.is_empty() && profile.kubernetes.is_empty());
            }
        }
        assert!(profile.lease() <= profile.deadline());
        assert!(!profile.name.is_empty() && !profile.name.contains(['/', '.', '"', ' ']));
        assert!(profile.memory_bytes_max() > 0 && profile.stored_bytes_max() > 0);
    }
}
