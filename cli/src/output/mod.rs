//! What commands print: tables for people, JSON for programs.

pub mod json;
pub mod table;
pub mod text;

use std::io::Write;

use crate::failure::Outcome;

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// Tables and sentences.
    #[default]
    Table,
    /// Protobuf's JSON form of the API's messages: one document, or one object
    /// a line for streams.
    Json,
}

/// Prints to stdout. A reader that has enough (`| head`) ends the command
/// quietly, as it would end any other.
pub fn text_block(text: std::fmt::Arguments<'_>) {
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = stdout.write_fmt(text).and_then(|()| stdout.flush()) {
        if error.kind() != std::io::ErrorKind::BrokenPipe {
            eprintln!("error: the output cannot be written: {error}");
        }
        std::process::exit(i32::from(error.kind() != std::io::ErrorKind::BrokenPipe));
    }
}

/// As [`text_block`], with an end of line.
pub fn line(text: std::fmt::Arguments<'_>) {
    text_block(format_args!("{text}\n"));
}

/// Prints one resource: its JSON, or rows of names and values.
///
/// # Errors
/// If the message cannot be shown as JSON.
pub fn show<M: prost::Message>(
    format: Format,
    name: &str,
    message: &M,
    rows: impl FnOnce(&M) -> Vec<(&'static str, String)>,
) -> Outcome {
    match format {
        Format::Json => line(format_args!("{}", json::pretty(&json::value(name, message)?))),
        Format::Table => text_block(format_args!("{}", table::details(rows(message)))),
    }
    Ok(())
}

/// Prints a list of resources: a JSON array, or a table.
///
/// # Errors
/// If a message cannot be shown as JSON.
pub fn list<M: prost::Message>(
    format: Format,
    name: &str,
    messages: &[M],
    header: &[&str],
    row: impl Fn(&M) -> Vec<String>,
) -> Outcome {
    match format {
        Format::Json => {
            let values: Result<Vec<_>, _> = messages.iter().map(|message| json::value(name, message)).collect();
            line(format_args!("{}", json::pretty(&serde_json::Value::Array(values?))));
        }
        Format::Table => text_block(format_args!("{}", table::table(header, messages.iter().map(row)))),
    }
    Ok(())
}

/// Says that something was done; nothing in JSON, where the exit code says it.
pub fn done(format: Format, sentence: impl FnOnce() -> String) {
    if format == Format::Table {
        line(format_args!("{}", sentence()));
    }
}
