//! Command lines become programs with arguments, without a shell.
//!
//! - White space separates words.
//! - `"..."` keeps white space; inside, `\"` and `\\` stand for `"` and `\`,
//!   any other backslash for itself.
//! - `'...'` keeps everything as it is. A `'` without a partner is an ordinary
//!   character.
//! - Outside of quotes a backslash before white space, a quote or another
//!   backslash takes away its meaning; otherwise it stands for itself.
//! - Nothing is expanded: who wants variables, writes `/bin/sh -c "..."`.

/// Why a text is no command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCommandLine {
    /// There is no program.
    #[error("the command line is empty")]
    Empty,
    /// A `"` has no partner.
    #[error("the command line has an opening double quote without a closing one")]
    OpenQuote,
    /// Programs cannot receive it.
    #[error("the command line contains a NUL character")]
    Nul,
}

/// The words of a command line; the first is the program.
///
/// # Errors
/// [`InvalidCommandLine`] says what is wrong.
pub fn split(text: &str) -> Result<Vec<String>, InvalidCommandLine> {
    if text.contains('\0') {
        return Err(InvalidCommandLine::Nul);
    }
    let mut words = Vec::new();
    // `Some("")` is an empty word (`""`), `None` is no word.
    let mut word: Option<String> = None;
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        match character {
            '"' => read_quoted(&mut rest, word.get_or_insert_default())?,
            '\'' => match rest.as_str().split_once('\'') {
                Some((inside, after)) => {
                    word.get_or_insert_default().push_str(inside);
                    rest = after.chars();
                }
                None => word.get_or_insert_default().push('\''),
            },
            '\\' => {
                let escaped = rest.clone().next().filter(|c| c.is_whitespace() || matches!(c, '"' | '\'' | '\\'));
                if escaped.is_some() {
                    rest.next();
                }
                word.get_or_insert_default().push(escaped.unwrap_or('\\'));
            }
            space if space.is_whitespace() => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    match words.first() {
        Some(program) if !program.is_empty() => Ok(words),
        _ => Err(InvalidCommandLine::Empty),
    }
}

fn read_quoted(rest: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), InvalidCommandLine> {
    while let Some(character) = rest.next() {
        match character {
            '"' => return Ok(()),
            '\\' => {
                let escaped = rest.clone().next().filter(|c| matches!(c, '"' | '\\'));
                if escaped.is_some() {
                    rest.next();
                }
                word.push(escaped.unwrap_or('\\'));
            }
            other => word.push(other),
        }
    }
    Err(InvalidCommandLine::OpenQuote)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_as_their_authors_mean_them() {
        let table: &[(&str, &[&str])] = &[
            ("true", &["true"]),
            ("  a   b\tc\n", &["a", "b", "c"]),
            (r#"/bin/bash -c "echo hi; exit 3""#, &["/bin/bash", "-c", "echo hi; exit 3"]),
            ("/bin/bash -c 'echo \"$HOME\"'", &["/bin/bash", "-c", "echo \"$HOME\""]),
            (r#"sh -c "echo \"a b\" 'c'""#, &["sh", "-c", r#"echo "a b" 'c'"#]),
            (r#"python3 -c "print('x')""#, &["python3", "-c", "print('x')"]),
            (r#"grep "\d+\.txt" a\b"#, &["grep", r"\d+\.txt", r"a\b"]),
            (r#"a "" b"#, &["a", "", "b"]),
            (r#"pre"mid dle"post"#, &["premid dlepost"]),
            (r"a\ b c\\d \'e", &["a b", r"c\d", "'e"]),
            ("echo it's", &["echo", "it's"]),
            (r"trailing \", &["trailing", r"\"]),
            ("äöü 'ß ß'", &["äöü", "ß ß"]),
            ("echo $HOME > x", &["echo", "$HOME", ">", "x"]),
        ];
        for (text, expected) in table {
            assert_eq!(split(text).unwrap(), *expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_run_is_refused() {
        assert_eq!(split(""), Err(InvalidCommandLine::Empty));
        assert_eq!(split(" \t "), Err(InvalidCommandLine::Empty));
        assert_eq!(split("\"\" x"), Err(InvalidCommandLine::Empty));
        assert_eq!(split("a \"b"), Err(InvalidCommandLine::OpenQuote));
        assert_eq!(split("a\0b"), Err(InvalidCommandLine::Nul));
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*|[ \"'\\\\a\\n]{0,40}") {
            let _ = split(&text);
        }

        #[test]
        fn quoted_words_come_back(words in prop::collection::vec("[^\\x00]{1,12}", 1..6)) {
            let quote = |word: &String| format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""));
            let text = words.iter().map(quote).collect::<Vec<_>>().join(" ");
            prop_assert_eq!(split(&text).unwrap(), words);
        }
    }
}
