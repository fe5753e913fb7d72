//! Text that somebody outside wrote: branch names, step keys, tags. Bounded once, at the door, and never
//! trusted afterwards (rule C6).

use std::fmt;

use serde::{Deserialize, Serialize};
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory as _};

/// Longest untrusted text that is kept, in characters; the rest is cut.
pub const UNTRUSTED_TEXT_CHARACTERS_MAX: usize = 256;
/// Longest value of a Kubernetes label, in bytes.
pub const LABEL_BYTES_MAX: usize = 63;

/// Bounded text without control characters. Safe to log as JSON and to compare; in labels only through [`Self::label`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct UntrustedText(String);

impl UntrustedText {
    /// Takes `text`, replaces what does not show what it is ([`is_unsafe`]) by `\u{FFFD}` and cuts it to the bound.
    pub fn new(text: &str) -> Self {
        Self(plain(bounded(text)).collect())
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
        // It was cleaned when it came in. What an earlier version let pass stays as it is, or a record of then would
        // not be the one that was signed.
        let replaced = |c: char| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        };
        let text = String::deserialize(deserializer)?;
        Ok(Self(bounded(&text).map(replaced).collect()))
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

/// Whether somebody who looks at a text could be deceived by the character: it is not seen, changes the direction of
/// what is seen, or begins a new line; also whatever a terminal acts on.
pub fn is_unsafe(c: char) -> bool {
    // Most text is ASCII, and there the two agree.
    c.is_control()
        || (!c.is_ascii()
            && matches!(
                c.general_category(),
                GeneralCategory::Format
                    | GeneralCategory::LineSeparator
                    | GeneralCategory::ParagraphSeparator
            ))
}

/// The text with `\u{FFFD}` for each character that [`is_unsafe`].
pub fn plain(text: impl Iterator<Item = char>) -> impl Iterator<Item = char> {
    text.map(|c| {
        if is_unsafe(c) {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    })
}

fn bounded(text: &str) -> impl Iterator<Item = char> {
    text.chars().take(UNTRUSTED_TEXT_CHARACTERS_MAX)
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
    fn c6_untrusted_text_has_nothing_that_is_not_seen_or_changes_direction() {
        let hidden = [
            '\u{ad}',
            '\u{61c}',
            '\u{200b}',
            '\u{200c}',
            '\u{200d}',
            '\u{200e}',
            '\u{200f}',
            '\u{2028}',
            '\u{2029}',
            '\u{202a}',
            '\u{202e}',
            '\u{2060}',
            '\u{2066}',
            '\u{2069}',
            '\u{feff}',
            '\u{fffb}',
            '\u{e0041}',
            '\u{85}',
            '\u{7f}',
        ];
        for c in hidden {
            assert_eq!(
                UntrustedText::new(&format!("a{c}b")).as_str(),
                "a\u{fffd}b",
                "{}",
                c.escape_unicode()
            );
        }
        let seen = "ünï-\u{5d0}\u{627}/日本 \u{1f600}";
        assert_eq!(UntrustedText::new(seen).as_str(), seen);
    }

    #[test]
    fn text_that_was_taken_before_is_read_as_it_was_written() {
        let read = |json: &str| serde_json::from_str::<UntrustedText>(json).unwrap().0;
        assert_eq!(read("\"a\u{200d}b\""), "a\u{200d}b");
        assert_eq!(read("\"a\\u001bb\""), "a\u{fffd}b");
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
