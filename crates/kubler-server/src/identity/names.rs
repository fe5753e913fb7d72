//! Names that moved. Ids decide, so a recycled name gives nobody anything; but somebody should look (rule C2).

use std::fmt;

use kubler_core::identity::Identity;
use kubler_core::text::UntrustedText;
use moka::sync::Cache;

/// Names that are remembered. Kept in memory: after a restart the first id seen is the one to differ from.
const NAMES_MAX: u64 = 10_000;

/// Which id each slug had when it was last seen.
pub(super) struct Names(Cache<String, String>);

/// A slug that now belongs to another id.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Moved {
    /// `organization` or `organization/pipeline`, by slug.
    name: String,
    from: String,
    to: String,
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` was {} and is {}",
            UntrustedText::new(&self.name),
            self.from,
            self.to
        )
    }
}

impl Default for Names {
    fn default() -> Self {
        Self(Cache::new(NAMES_MAX))
    }
}

impl Names {
    /// Notes the names of a verified identity; tells which of them had another id before.
    pub(super) fn seen(&self, identity: &Identity) -> Vec<Moved> {
        let organization = format!("{} {}", identity.issuer, identity.organization.slug);
        let project = format!(
            "{} {}/{}",
            identity.issuer, identity.organization.id, identity.project.slug
        );
        let pairs = [
            (organization, &identity.organization.id),
            (project, &identity.project.id),
        ];
        pairs
            .into_iter()
            .filter_map(|(name, id)| self.note(name, id))
            .collect()
    }

    fn note(&self, name: String, id: &String) -> Option<Moved> {
        let before = self.0.get(&name);
        if before.as_ref() == Some(id) {
            return None;
        }
        self.0.insert(name.clone(), id.clone());
        before.map(|from| Moved {
            name,
            from,
            to: id.clone(),
        })
    }
}
