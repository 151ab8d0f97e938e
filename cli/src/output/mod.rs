//! What commands print: tables for people, JSON for programs.

pub mod json;
pub mod table;
pub mod text;

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
        Format::Json => println!("{}", json::pretty(&json::value(name, message)?)),
        Format::Table => print!("{}", table::details(rows(message))),
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
            println!("{}", json::pretty(&serde_json::Value::Array(values?)));
        }
        Format::Table => print!("{}", table::table(header, messages.iter().map(row))),
    }
    Ok(())
}

/// Says that something was done; nothing in JSON, where the exit code says it.
pub fn done(format: Format, sentence: impl FnOnce() -> String) {
    if format == Format::Table {
        println!("{}", sentence());
    }
}
