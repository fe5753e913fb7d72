//! Cuts a policy file into its policies, so that each fault has a line and one bad policy does not hide the next.

/// One policy as it stands in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Statement<'a> {
    /// Line of its first character, from 1.
    pub(super) line: usize,
    /// From its first annotation or keyword up to and with its `;`.
    pub(super) text: &'a str,
}

enum Within {
    Blank,
    Code,
    Text,
    TextEscape,
    Comment,
}

/// The policies of `source` in order. `;` ends a policy everywhere but in texts and comments. What follows the
/// last `;` comes as a statement of its own when it is more than blanks and comments.
pub(super) fn statements(source: &str) -> Vec<Statement<'_>> {
    let mut found = Vec::new();
    let mut within = Within::Blank;
    let mut start: Option<(usize, usize)> = None;
    let mut line = 1;
    let mut characters = source.char_indices().peekable();
    while let Some((at, c)) = characters.next() {
        let comment_begins = c == '/' && characters.peek().is_some_and(|(_, next)| *next == '/');
        within = match within {
            Within::Comment if c == '\n' => {
                if start.is_some() { Within::Code } else { Within::Blank }
            }
            Within::Comment => Within::Comment,
            Within::Text if c == '\\' => Within::TextEscape,
            Within::Text if c == '"' => Within::Code,
            Within::Text | Within::TextEscape => Within::Text,
            Within::Blank | Within::Code if comment_begins => Within::Comment,
            Within::Blank if c.is_whitespace() => Within::Blank,
            Within::Blank | Within::Code => {
                let (offset, first_line) = *start.get_or_insert((at, line));
                if c == ';' {
                    let text = source.get(offset..=at).unwrap_or_default();
                    found.push(Statement { line: first_line, text });
                    start = None;
                    Within::Blank
                } else if c == '"' {
                    Within::Text
                } else {
                    Within::Code
                }
            }
        };
        if c == '\n' {
            line += 1;
        }
    }
    if let Some((offset, first_line)) = start {
        let text = source.get(offset..).unwrap_or_default().trim_end();
        found.push(Statement { line: first_line, text });
    }
    found
}

/// The line, from 1, of the byte `offset` of `text`, when `text` begins at `first_line`.
pub(super) fn line_of(text: &str, offset: usize, first_line: usize) -> usize {
    let before = text.bytes().take(offset);
    first_line + before.filter(|byte| *byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semicolons_in_texts_and_comments_end_nothing() {
        let source = "// permit (a); \n\npermit (\"a;\\\";\" // ;\n);\n  forbid (b);// last\n";
        let found = statements(source);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], Statement { line: 3, text: "permit (\"a;\\\";\" // ;\n);" });
        assert_eq!(found[1], Statement { line: 5, text: "forbid (b);" });
    }

    #[test]
    fn what_lacks_its_semicolon_is_still_seen() {
        assert_eq!(statements("permit (a);\npermit (b)\n"), [
            Statement { line: 1, text: "permit (a);" },
            Statement { line: 2, text: "permit (b)" },
        ]);
    }

    #[test]
    fn an_offset_has_a_line() {
        assert_eq!(line_of("a\nb\nc", 0, 10), 10);
        assert_eq!(line_of("a\nb\nc", 4, 10), 12);
        assert_eq!(line_of("a", 100, 1), 1);
    }
}
