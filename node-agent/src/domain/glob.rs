//! Patterns of output files.
//!
//! `*` any characters within a name, `?` one character, `[abc]`, `[a-c]`,
//! `[!abc]` one of (or none of) these, `**` as a whole part of the path any
//! number of directories. Names that begin with a dot are matched only by a
//! part that begins with a dot. `/` separates parts. There is no escape
//! character: `[*]` stands for a star.

/// Longest pattern that is accepted.
const MAX_PATTERN_LEN: usize = 4096;

/// Why a text is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    /// Nothing can match.
    #[error("the file pattern is empty")]
    Empty,
    /// Too long.
    #[error("the file pattern is longer than 4096 characters")]
    TooLong,
    /// A `[` has no partner.
    #[error("the file pattern has a '[' without a ']'")]
    OpenBracket,
}

/// One part of a path pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Exactly this name.
    Literal(String),
    /// A name of this form.
    Name(Vec<Token>),
    /// `**`: any number of directories.
    Directories,
}

/// One piece of a name pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// This character.
    Character(char),
    /// `?`
    One,
    /// `*`
    Any,
    /// `[...]`
    Class {
        /// `[!...]`
        negated: bool,
        /// Inclusive ranges; single characters are ranges of one.
        ranges: Vec<(char, char)>,
    },
}

/// A pattern, cut at its slashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// Begins at the root of the file system.
    pub absolute: bool,
    /// Leading parts without wildcards (may contain `..`): where the search
    /// begins. Without any wildcard this is the whole path.
    pub fixed: Vec<String>,
    /// The rest, beginning with the first part that has a wildcard.
    pub parts: Vec<Part>,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// [`InvalidPattern`] says what is wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        if text.len() > MAX_PATTERN_LEN {
            return Err(InvalidPattern::TooLong);
        }
        let mut pattern = Self { absolute: text.starts_with('/'), fixed: Vec::new(), parts: Vec::new() };
        for piece in cut(text).into_iter().filter(|piece| !piece.is_empty() && *piece != ".") {
            let part = Part::parse(piece)?;
            match part {
                Part::Literal(name) if pattern.parts.is_empty() => pattern.fixed.push(name),
                // Two in a row mean the same as one, but cost more.
                Part::Directories if pattern.parts.last() == Some(&Part::Directories) => {}
                part => pattern.parts.push(part),
            }
        }
        if pattern.fixed.is_empty() && pattern.parts.is_empty() {
            return Err(InvalidPattern::Empty);
        }
        Ok(pattern)
    }

    /// Whether it can mean more than one file.
    pub fn has_wildcard(&self) -> bool {
        !self.parts.is_empty()
    }

    /// Whether `names`, the parts of a path below the fixed directory, match.
    pub fn matches(&self, names: &[&str]) -> bool {
        match_parts(&self.parts, names)
    }

    /// Whether a file below the directory with these parts could match; lets a
    /// search leave out directories.
    pub fn may_match_below(&self, names: &[&str]) -> bool {
        may_match(&self.parts, names)
    }
}

/// Cuts at slashes that are not inside of brackets.
fn cut(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut begin = 0;
    let mut in_class = false;
    for (at, character) in text.char_indices() {
        match character {
            '[' if !in_class => in_class = text[at..].split('/').next().is_some_and(|piece| piece.contains(']')),
            ']' => in_class = false,
            '/' if !in_class => {
                pieces.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    pieces.push(&text[begin..]);
    pieces
}

impl Part {
    fn parse(piece: &str) -> Result<Self, InvalidPattern> {
        if piece == "**" {
            return Ok(Self::Directories);
        }
        let mut tokens = Vec::new();
        let mut rest = piece.chars();
        while let Some(character) = rest.next() {
            tokens.push(match character {
                '*' => {
                    if tokens.last() == Some(&Token::Any) {
                        continue;
                    }
                    Token::Any
                }
                '?' => Token::One,
                '[' => read_class(&mut rest)?,
                other => Token::Character(other),
            });
        }
        let literal: Option<String> = tokens
            .iter()
            .map(|token| match token {
                Token::Character(character) => Some(*character),
                Token::Class { negated: false, ranges } => match ranges[..] {
                    [(first, last)] if first == last => Some(first),
                    _ => None,
                },
                Token::One | Token::Any | Token::Class { .. } => None,
            })
            .collect();
        Ok(literal.map_or(Self::Name(tokens), Self::Literal))
    }

    /// Whether the part matches one name.
    fn matches_name(&self, name: &str) -> bool {
        match self {
            Self::Literal(literal) => literal == name,
            Self::Directories => !name.starts_with('.'),
            Self::Name(tokens) => {
                let dot = name.starts_with('.');
                (!dot || tokens.first() == Some(&Token::Character('.'))) && match_tokens(tokens, name)
            }
        }
    }
}

fn read_class(rest: &mut std::str::Chars<'_>) -> Result<Token, InvalidPattern> {
    let negated = rest.as_str().starts_with('!');
    if negated {
        rest.next();
    }
    let mut ranges = Vec::new();
    loop {
        let first = rest.next().ok_or(InvalidPattern::OpenBracket)?;
        // A closing bracket in the first place is one of the characters.
        if first == ']' && !ranges.is_empty() {
            return Ok(Token::Class { negated, ranges });
        }
        let mut ahead = rest.clone();
        let last = match (ahead.next(), ahead.next()) {
            (Some('-'), Some(last)) if last != ']' => {
                *rest = ahead;
                last
            }
            _ => first,
        };
        ranges.push((first, last));
    }
}

/// Matches with a single place to come back to (the last star), so that no
/// pattern takes more than pattern times name steps.
fn match_tokens(tokens: &[Token], name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    let (mut token, mut at) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while at < name.len() {
        let fits = match tokens.get(token) {
            Some(Token::Any) => {
                retry = Some((token, at));
                token += 1;
                continue;
            }
            Some(Token::One) => true,
            Some(Token::Character(character)) => *character == name[at],
            Some(Token::Class { negated, ranges }) => {
                ranges.iter().any(|(first, last)| (*first..=*last).contains(&name[at])) != *negated
            }
            None => false,
        };
        if fits {
            token += 1;
            at += 1;
        } else if let Some((star, from)) = retry {
            retry = Some((star, from + 1));
            token = star + 1;
            at = from + 1;
        } else {
            return false;
        }
    }
    tokens[token..].iter().all(|token| *token == Token::Any)
}

/// The same with parts and names in the place of tokens and characters.
fn match_parts(parts: &[Part], names: &[&str]) -> bool {
    // reachable[p]: the first p parts match the names so far.
    let mut reachable = open(parts, 0);
    for (index, name) in names.iter().enumerate() {
        let is_last = index + 1 == names.len();
        reachable = step(parts, &reachable, name, is_last);
    }
    reachable[parts.len()]
}

fn may_match(parts: &[Part], names: &[&str]) -> bool {
    let mut reachable = open(parts, 0);
    for name in names {
        reachable = step(parts, &reachable, name, false);
    }
    reachable[..parts.len()].iter().any(|reachable| *reachable)
}

fn open(parts: &[Part], from: usize) -> Vec<bool> {
    let mut reachable = vec![false; parts.len() + 1];
    reachable[from] = true;
    close(parts, &mut reachable);
    reachable
}

/// `**` may stand for no directory at all, except at the end of a pattern.
fn close(parts: &[Part], reachable: &mut [bool]) {
    for at in 0..parts.len() {
        if reachable[at] && parts[at] == Part::Directories && at + 1 < parts.len() {
            reachable[at + 1] = true;
        }
    }
}

fn step(parts: &[Part], reachable: &[bool], name: &str, is_last: bool) -> Vec<bool> {
    let mut next = vec![false; parts.len() + 1];
    for at in 0..parts.len() {
        if !reachable[at] || !parts[at].matches_name(name) {
            continue;
        }
        if parts[at] == Part::Directories {
            next[at] = true;
            // At the end of the pattern it takes the file's own name, too.
            if is_last && at + 1 == parts.len() {
                next[at + 1] = true;
            }
        } else {
            next[at + 1] = true;
        }
    }
    close(parts, &mut next);
    next
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        let names: Vec<&str> = path.split('/').collect();
        let pattern = Pattern::parse(pattern).unwrap();
        let fixed = pattern.fixed.len();
        names.len() >= fixed
            && pattern.fixed.iter().zip(&names).all(|(a, b)| a == b)
            && if pattern.has_wildcard() { pattern.matches(&names[fixed..]) } else { names.len() == fixed }
    }

    #[test]
    fn patterns_match_as_documented() {
        let yes = [
            ("out.txt", "out.txt"),
            ("*.txt", "a.txt"),
            ("../std*.txt", "../stdout.txt"),
            ("a/*/c", "a/b/c"),
            ("**/*.csv", "x.csv"),
            ("**/*.csv", "a/b/x.csv"),
            ("out/**", "out/a/b/c.bin"),
            ("out/**/x?", "out/x1"),
            ("[abc]1", "b1"),
            ("[a-c]1", "b1"),
            ("[!abc]1", "d1"),
            ("x[*]", "x*"),
            ("[]]", "]"),
            ("[a-]", "-"),
            (".hidden", ".hidden"),
            (".*", ".hidden"),
            (".*/*", ".d/x"),
            ("*a*b*", "xxaxxbxx"),
            ("ä*", "äö"),
        ];
        for (pattern, path) in yes {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        let no = [
            ("*.txt", "a.csv"),
            ("*.txt", "d/a.txt"),
            ("*", ".hidden"),
            ("?hidden", ".hidden"),
            ("**/*.csv", ".git/x.csv"),
            ("**", ".git"),
            ("out/**", "out"),
            ("[abc]1", "d1"),
            ("[!abc]1", "a1"),
            ("[!a]hidden", ".hidden"),
            ("a/*/c", "a/b/d/c"),
            ("*a*b*", "xxbxxaxx"),
        ];
        for (pattern, path) in no {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn the_fixed_part_ends_at_the_first_wildcard() {
        let pattern = Pattern::parse("/root/out/../x/*/y").unwrap();
        assert!(pattern.absolute);
        assert_eq!(pattern.fixed, ["root", "out", "..", "x"]);
        assert_eq!(pattern.parts.len(), 2);
        assert!(!Pattern::parse("a/b.txt").unwrap().has_wildcard());
        assert!(!Pattern::parse("x[*]").unwrap().has_wildcard());
        assert_eq!(Pattern::parse("x[*]").unwrap().fixed, ["x*"]);
    }

    #[test]
    fn directories_that_cannot_match_are_left_out() {
        let pattern = Pattern::parse("*/b/*.txt").unwrap();
        assert!(pattern.may_match_below(&["x"]));
        assert!(pattern.may_match_below(&["x", "b"]));
        assert!(!pattern.may_match_below(&["x", "c"]));
        assert!(!pattern.may_match_below(&["x", "b", "d"]));
        assert!(Pattern::parse("**/x").unwrap().may_match_below(&["a", "b", "c"]));
    }

    #[test]
    fn bad_patterns_are_refused() {
        assert_eq!(Pattern::parse(""), Err(InvalidPattern::Empty));
        assert_eq!(Pattern::parse("/"), Err(InvalidPattern::Empty));
        assert_eq!(Pattern::parse("a[b"), Err(InvalidPattern::OpenBracket));
        assert_eq!(Pattern::parse(&"a".repeat(5000)), Err(InvalidPattern::TooLong));
    }

    proptest! {
        #[test]
        fn never_panics(pattern in "[a*?.!\\[\\]/ä-]{0,16}", path in "[a./ä]{0,16}") {
            if let Ok(pattern) = Pattern::parse(&pattern) {
                let names: Vec<&str> = path.split('/').collect();
                let _ = pattern.matches(&names);
                let _ = pattern.may_match_below(&names);
            }
        }

        #[test]
        fn a_match_is_never_pruned(pattern in "(\\*\\*|\\*|a|a\\*)(/(\\*\\*|\\*|a|\\?)){0,3}", path in "[ab]{1,2}(/[ab]{1,2}){0,4}") {
            let pattern = Pattern::parse(&pattern).unwrap();
            let names: Vec<&str> = path.split('/').collect();
            if pattern.matches(&names) {
                for end in 0..names.len() {
                    prop_assert!(pattern.may_match_below(&names[..end]));
                }
            }
        }
    }
}
