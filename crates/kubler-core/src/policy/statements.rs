//! Cuts a policy file into its policies, so that each fault has a line and one bad policy does not hide the next.

/// One policy as it stands in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Statement<'a> {
    /// Line of its first character, from 1.
    pub(super) line: usize,
    /// From its first annotation or keyword up to and with its `;`.
    pub(super) text: &'a str,
}

/// Most words and operators in one policy; texts and commas are free, so that a set of ids may be long.
pub(super) const TOKENS_MAX: usize = 1500;
/// Deepest nesting of brackets in one policy.
pub(super) const BRACKETS_MAX: usize = 24;
/// Most `if`s in one policy: they nest without brackets.
pub(super) const CONDITIONALS_MAX: usize = 24;

/// Longest chain of `.` and most arithmetic operators in one policy: each goes one level deeper.
pub(super) const CHAIN_MAX: usize = 32;

/// What a character belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Code,
    Text,
    Comment,
}

/// Tells code from texts and comments.
struct Scanner<'a> {
    characters: std::iter::Peekable<std::str::CharIndices<'a>>,
    part: Part,
    is_escaped: bool,
}

impl<'a> Scanner<'a> {
    fn new(source: &'a str) -> Self {
        Self {
            characters: source.char_indices().peekable(),
            part: Part::Code,
            is_escaped: false,
        }
    }
}

impl Iterator for Scanner<'_> {
    type Item = (usize, char, Part);

    fn next(&mut self) -> Option<Self::Item> {
        let (at, c) = self.characters.next()?;
        let comment_begins =
            c == '/' && self.characters.peek().is_some_and(|(_, next)| *next == '/');
        let (own, then) = match self.part {
            Part::Comment if c == '\n' => (Part::Comment, Part::Code),
            Part::Comment => (Part::Comment, Part::Comment),
            Part::Text if self.is_escaped => (Part::Text, Part::Text),
            Part::Text if c == '"' => (Part::Text, Part::Code),
            Part::Text => (Part::Text, Part::Text),
            Part::Code if comment_begins => (Part::Comment, Part::Comment),
            Part::Code if c == '"' => (Part::Text, Part::Text),
            Part::Code => (Part::Code, Part::Code),
        };
        self.is_escaped = self.part == Part::Text && c == '\\' && !self.is_escaped;
        self.part = then;
        Some((at, c, own))
    }
}

/// The policies of `source` in order. `;` ends a policy everywhere but in texts and comments. What follows the
/// last `;` comes as a statement of its own when it is more than blanks and comments.
pub(super) fn statements(source: &str) -> Vec<Statement<'_>> {
    let mut found = Vec::new();
    let mut start: Option<(usize, usize)> = None;
    let mut line = 1;
    for (at, c, part) in Scanner::new(source) {
        if part != Part::Comment && !c.is_whitespace() {
            let (offset, first_line) = *start.get_or_insert((at, line));
            if c == ';' && part == Part::Code {
                let text = source.get(offset..=at).unwrap_or_default();
                found.push(Statement {
                    line: first_line,
                    text,
                });
                start = None;
            }
        }
        if c == '\n' {
            line += 1;
        }
    }
    if let Some((offset, first_line)) = start {
        let text = source.get(offset..).unwrap_or_default().trim_end();
        found.push(Statement {
            line: first_line,
            text,
        });
    }
    found
}

/// Which bound a policy breaks, if any. The language's own reader follows nesting with the machine's stack, so
/// this is asked before it sees the text.
pub(super) fn excess(text: &str) -> Option<String> {
    let (mut tokens, mut depth, mut deepest) = (0_usize, 0_usize, 0_usize);
    let mut word = String::new();
    let (mut conditionals, mut dots, mut longest, mut sums) = (0, 0_usize, 0_usize, 0_usize);
    for (_, c, part) in Scanner::new(text).chain([(text.len(), ' ', Part::Code)]) {
        if part == Part::Code && (c.is_alphanumeric() || c == '_') {
            word.push(c);
            continue;
        }
        tokens += usize::from(!word.is_empty());
        conditionals += usize::from(word == "if");
        word.clear();
        if part != Part::Code || c.is_whitespace() || c == ',' {
            continue;
        }
        tokens += 1;
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            '.' => dots += 1,
            '+' | '-' | '*' => sums += 1,
            '&' | '|' | '=' | '<' | '>' => dots = 0,
            _ => {}
        }
        (deepest, longest) = (deepest.max(depth), longest.max(dots));
    }
    if tokens > TOKENS_MAX {
        Some(format!(
            "it has {tokens} words and operators, at most {TOKENS_MAX} are read"
        ))
    } else if deepest > BRACKETS_MAX {
        Some(format!(
            "its brackets nest {deepest} deep, at most {BRACKETS_MAX} are read"
        ))
    } else if conditionals > CONDITIONALS_MAX {
        Some(format!(
            "it has {conditionals} `if`s, at most {CONDITIONALS_MAX} are read"
        ))
    } else if longest.max(sums) > CHAIN_MAX {
        Some(format!(
            "it has a chain of {} operators, at most {CHAIN_MAX} are read",
            longest.max(sums)
        ))
    } else {
        None
    }
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
        assert_eq!(
            found[0],
            Statement {
                line: 3,
                text: "permit (\"a;\\\";\" // ;\n);"
            }
        );
        assert_eq!(
            found[1],
            Statement {
                line: 5,
                text: "forbid (b);"
            }
        );
    }

    #[test]
    fn what_lacks_its_semicolon_is_still_seen() {
        assert_eq!(
            statements("permit (a);\npermit (b)\n"),
            [
                Statement {
                    line: 1,
                    text: "permit (a);"
                },
                Statement {
                    line: 2,
                    text: "permit (b)"
                },
            ]
        );
    }

    #[test]
    fn an_offset_has_a_line() {
        assert_eq!(line_of("a\nb\nc", 0, 10), 10);
        assert_eq!(line_of("a\nb\nc", 4, 10), 12);
        assert_eq!(line_of("a", 100, 1), 1);
    }
}
