//! `chaos-check DIRECTORY [--clock-error-ms N]`: prints the verdict on the histories of a directory as one JSON object.
//! Exit codes: 0 all promises were kept, 1 some were not, 2 the histories cannot be read.

use std::path::PathBuf;
use std::process::ExitCode;

use kiln_chaos_check::{History, Rules, check};

const USAGE: &str = "usage: chaos-check DIRECTORY [--clock-error-ms N]";

fn main() -> ExitCode {
    match verdict() {
        Ok((text, kept)) => {
            println!("{text}");
            ExitCode::from(u8::from(!kept))
        }
        Err(why) => {
            eprintln!("chaos-check: {why}");
            ExitCode::from(2)
        }
    }
}

fn verdict() -> Result<(String, bool), String> {
    let mut directory = None;
    let mut rules = Rules::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--clock-error-ms" {
            let value = arguments.next().and_then(|value| value.parse::<u64>().ok()).ok_or(USAGE)?;
            rules.clock_error = value.saturating_mul(1000);
        } else if argument.starts_with('-') || directory.is_some() {
            return Err(USAGE.to_owned());
        } else {
            directory = Some(PathBuf::from(argument));
        }
    }
    let history = History::read(&directory.ok_or(USAGE)?).map_err(|error| error.to_string())?;
    let verdict = check(&history, &rules);
    let text = serde_json::to_string(&verdict).map_err(|error| error.to_string())?;
    Ok((text, verdict.is_kept()))
}
