//! The policies that `kubler-server init` writes.

use std::collections::BTreeMap;

const ORGANIZATION: &str = include_str!("starter.cedar");
const CASES: &str = include_str!("starter-cases.yaml");
const OPERATORS: &str = include_str!("starter-operators.cedar");

/// Policy files, text by name, for one organization of an issuer: its own, and the operators'.
///
/// `organization_id` is the immutable UUID; `slug` only names the file and the policies.
pub fn starter(organization_id: &str, slug: &str) -> BTreeMap<String, String> {
    let name = plain(slug);
    let text = ORGANIZATION
        .replace("{id}", &plain(organization_id))
        .replace("{slug}", &name)
        .replace("{name}", &name);
    let own = format!("{name}.cedar");
    BTreeMap::from([
        (own, text),
        ("operators.cedar".to_owned(), OPERATORS.to_owned()),
    ])
}

/// Golden cases for [`starter`], to begin one's own with.
pub fn starter_cases(slug: &str) -> String {
    CASES.replace("{name}", &plain(slug))
}

/// Lower-case letters, digits and `-` only, and never empty: it stands in texts, comments and a file's name.
fn plain(text: &str) -> String {
    let kept: String = text
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .take(64)
        .collect();
    if kept.is_empty() || kept == "operators" {
        format!("organization{kept}")
    } else {
        kept
    }
}
