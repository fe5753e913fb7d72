//! Text that somebody outside wrote: branch names, step keys, tags. Bounded once, at the door, and never
//! trusted afterwards (rule C6).

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest untrusted text that is kept, in characters; the rest is cut.
pub const UNTRUSTED_TEXT_CHARACTERS_MAX: usize = 256;
/// Longest value of a Kubernetes label, in bytes.
pub const LABEL_BYTES_MAX: usize = 63;

/// Bounded text without control characters. Safe to log as JSON and to compare; in labels only through [`Self::label`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct UntrustedText(String);

impl UntrustedText {
    /// Takes `text`, replaces control and direction-changing characters by `\u{FFFD}` and cuts it to the bound.
    pub fn new(text: &str) -> Self {
        Self(
            text.chars()
                .take(UNTRUSTED_TEXT_CHARACTERS_MAX)
                .map(|c| {
                    if is_unsafe(c) {
                        char::REPLACEMENT_CHARACTER
                    } else {
                        c
                    }
                })
                .collect(),
        )
    }

    /// The bounded text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As the value of a Kubernetes label: `[A-Za-z0-9._-]`, at most 63 bytes, alphanumeric at both ends.
    /// Other characters become `-`. May be empty. Two texts may give one label: never decide by a label.
    pub fn label(&self) -> String {
        label(&self.0)
    }
}

impl<'de> Deserialize<'de> for UntrustedText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::new(&String::deserialize(deserializer)?))
    }
}

impl fmt::Display for UntrustedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Any text as the value of a Kubernetes label; see [`UntrustedText::label`].
pub fn label(text: &str) -> String {
    let safe: String = text
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') {
                c
            } else {
                '-'
            }
        })
        .take(LABEL_BYTES_MAX)
        .collect();
    safe.trim_matches(|c: char| !c.is_ascii_alphanumeric())
        .to_owned()
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{FEFF}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn c6_untrusted_text_is_bounded_and_has_no_control_characters() {
        let text = UntrustedText::new(&format!("a\u{1b}[31m\n\u{202e}{}", "x".repeat(10_000)));
        assert_eq!(text.as_str().chars().count(), UNTRUSTED_TEXT_CHARACTERS_MAX);
        assert!(!text.as_str().contains(['\u{1b}', '\n', '\u{202e}']));
    }

    #[test]
    fn c6_a_label_of_a_fork_branch_is_a_label() {
        assert_eq!(
            UntrustedText::new("some-user:feature/$(rm -rf)").label(),
            "some-user-feature---rm--rf"
        );
    }

    proptest! {
        #[test]
        fn c6_every_text_gives_a_valid_label(text in any::<String>()) {
            let label = UntrustedText::new(&text).label();
            prop_assert!(label.len() <= LABEL_BYTES_MAX);
            prop_assert!(label.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)));
            let ends_well = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
            prop_assert!(ends_well(label.chars().next()) && ends_well(label.chars().last()));
        }
    }
}
