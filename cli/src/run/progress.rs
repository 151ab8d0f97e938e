//! What a person sees while a workflow runs: bars on a terminal, lines
//! elsewhere, nothing with `--output json`. All of it on stderr.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Lines are not repeated more often than this.
const LINE_PAUSE: Duration = Duration::from_secs(2);

/// How progress is shown.
#[derive(Debug)]
pub struct Progress {
    bars: Option<MultiProgress>,
    lines: bool,
}

impl Progress {
    /// `quiet` shows nothing.
    pub fn new(quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bars = (!quiet && terminal).then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        Self { bars, lines: !quiet && !terminal }
    }

    /// Bars on a terminal, and nothing elsewhere.
    pub fn bars(quiet: bool) -> Self {
        Self { lines: false, ..Self::new(quiet) }
    }

    /// A phase measured in bytes, with their rate.
    pub fn transfer(&self, name: &'static str, total: u64) -> Phase {
        self.phase(name, total, "{prefix:8} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec} {msg}")
    }

    /// A phase measured in bytes.
    pub fn bytes(&self, name: &'static str, total: u64) -> Phase {
        self.phase(name, total, "{prefix:8} [{bar:32}] {bytes}/{total_bytes} {msg}")
    }

    /// A phase measured in things.
    pub fn count(&self, name: &'static str, total: u64) -> Phase {
        self.phase(name, total, "{prefix:8} [{bar:32}] {pos}/{len} {msg}")
    }

    fn phase(&self, name: &'static str, total: u64, template: &str) -> Phase {
        let bar = self.bars.as_ref().map(|bars| {
            // The templates are constants of this file.
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            bars.add(ProgressBar::new(total).with_style(style.progress_chars("=> ")).with_prefix(name))
        });
        if let Some(bar) = &bar {
            bar.tick();
        }
        Phase { name, bar, lines: self.lines, last: None, message: String::new() }
    }

    /// One line of text.
    pub fn say(&self, line: &str) {
        match &self.bars {
            // Fails if the terminal is gone; then nobody reads it.
            Some(bars) => drop(bars.println(line)),
            None if self.lines => eprintln!("{line}"),
            None => {}
        }
    }

    /// Takes the bars away.
    pub fn clear(&self) {
        if let Some(bars) = &self.bars {
            drop(bars.clear());
        }
    }
}

/// One phase of the run.
#[derive(Debug)]
pub struct Phase {
    name: &'static str,
    bar: Option<ProgressBar>,
    lines: bool,
    last: Option<Instant>,
    message: String,
}

impl Phase {
    /// A handle that only counts, for work on several tasks.
    pub fn counter(&self) -> impl Fn(u64) + Clone + Send + Sync + 'static {
        let bar = self.bar.clone();
        move |more| {
            if let Some(bar) = &bar {
                bar.inc(more);
            }
        }
    }

    /// Shows how far it is and a few words.
    pub fn set(&mut self, position: u64, message: String) {
        if let Some(bar) = &self.bar {
            bar.set_position(position);
            bar.set_message(message.clone());
        }
        let due = self.last.is_none_or(|last| last.elapsed() >= LINE_PAUSE);
        if self.lines && due && message != self.message {
            eprintln!("{}: {message}", self.name);
            self.last = Some(Instant::now());
            self.message = message;
        }
    }

    /// The phase is over.
    pub fn finish(self, message: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_with_message(message.to_owned());
        }
        if self.lines && message != self.message {
            eprintln!("{}: {message}", self.name);
        }
    }
}
