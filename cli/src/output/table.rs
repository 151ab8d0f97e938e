//! Tables without lines: easy to read, easy to cut.

use std::borrow::Cow;
use std::io::IsTerminal;

use comfy_table::{ContentArrangement, Table};

/// A table with a header; says so when there are no rows.
pub fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    if std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table.set_header(header.iter().map(|name| name.to_uppercase()));
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    trimmed(&table)
}

/// Names with values, one a line; empty values are left out.
pub fn details(rows: Vec<(&'static str, String)>) -> String {
    let rows: Vec<_> = rows.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:width$}  {}\n", printable(value))).collect()
}

/// The text as a terminal may see it. Names of blobs and files are anything, and
/// come from tasks: control characters in them could rewrite what is shown.
pub fn printable(text: &str) -> Cow<'_, str> {
    // These turn the direction of what follows.
    let turns = |c: char| matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
    let harmless = |c: char| (!c.is_control() || c == '\n') && !turns(c);
    if text.chars().all(harmless) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| if harmless(c) { c.to_string() } else { c.escape_default().to_string() };
    Cow::Owned(text.chars().map(shown).collect())
}

fn trimmed(table: &Table) -> String {
    let mut text = String::new();
    for line in table.to_string().lines() {
        text.push_str(line.strip_prefix(' ').unwrap_or(line).trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_without_decoration() {
        let rows = vec![vec!["a".to_owned(), "running".to_owned()], vec!["long-name".to_owned(), String::new()]];
        assert_eq!(table(&["id", "state"], rows.into_iter()), "ID         STATE\na          running\nlong-name\n");
    }

    #[test]
    fn names_cannot_command_the_terminal() {
        let rows = vec![vec!["a\u{1b}[2J\rb".to_owned()], vec!["\u{202e}txt.exe".to_owned()]];
        let text = table(&["name"], rows.into_iter());
        assert_eq!(text, "NAME\na\\u{1b}[2J\\rb\n\\u{202e}txt.exe\n");
        assert_eq!(details(vec![("name", "a\u{7}".to_owned())]), "name  a\\u{7}\n");
        assert_eq!(printable("ü 日本\nx"), "ü 日本\nx");
    }

    #[test]
    fn empty_details_are_left_out() {
        assert_eq!(
            details(vec![("id", "a".to_owned()), ("x", String::new()), ("state", "b".to_owned())]),
            "id     a\nstate  b\n"
        );
    }
}
