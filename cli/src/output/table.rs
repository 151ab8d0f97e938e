//! Tables without lines: easy to read, easy to cut.

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
        table.add_row(row);
    }
    trimmed(&table)
}

/// Names with values, one a line; empty values are left out.
pub fn details(rows: Vec<(&'static str, String)>) -> String {
    let rows: Vec<_> = rows.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
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
    fn empty_details_are_left_out() {
        assert_eq!(
            details(vec![("id", "a".to_owned()), ("x", String::new()), ("state", "b".to_owned())]),
            "id     a\nstate  b\n"
        );
    }
}
