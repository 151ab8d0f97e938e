//! Medians of rounds, as text and as one JSON object.

use serde_json::{Map, Value, json};

use crate::output::table;

/// Figures of one round, by name.
pub type Round = Vec<(&'static str, f64)>;

/// What a benchmark found.
#[derive(Debug)]
pub struct Report {
    bench: &'static str,
    facts: Vec<(&'static str, Value)>,
    rounds: Vec<Round>,
}

impl Report {
    /// An empty report of `kiln bench <bench>`.
    pub fn new(bench: &'static str) -> Self {
        Self { bench, facts: Vec::new(), rounds: Vec::new() }
    }

    /// Something that is the same in all rounds.
    pub fn fact(&mut self, name: &'static str, value: impl Into<Value>) {
        self.facts.push((name, value.into()));
    }

    /// One more round; all have the same figures.
    pub fn round(&mut self, round: Round) {
        self.rounds.push(round);
    }

    /// The median of a figure over all rounds, if it was taken.
    pub fn median(&self, name: &str) -> Option<f64> {
        self.spread(name).map(|(_, median, _)| median)
    }

    fn spread(&self, name: &str) -> Option<(f64, f64, f64)> {
        let found = |round: &Round| round.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        spread(self.rounds.iter().filter_map(found).collect())
    }

    fn names(&self) -> Vec<&'static str> {
        self.rounds.first().map(|round| round.iter().map(|(name, _)| *name).collect()).unwrap_or_default()
    }

    /// One object: facts and medians by name, then the spread and the rounds.
    pub fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("bench".to_owned(), json!(self.bench));
        for (name, value) in &self.facts {
            object.insert((*name).to_owned(), value.clone());
        }
        let (mut least, mut most) = (Map::new(), Map::new());
        for name in self.names() {
            if let Some((min, median, max)) = self.spread(name) {
                object.insert(name.to_owned(), json!(rounded(median)));
                least.insert(name.to_owned(), json!(rounded(min)));
                most.insert(name.to_owned(), json!(rounded(max)));
            }
        }
        let round = |round: &Round| {
            Value::Object(round.iter().map(|(name, value)| ((*name).to_owned(), json!(rounded(*value)))).collect())
        };
        object.insert("repeat".to_owned(), json!(self.rounds.len()));
        object.insert("min".to_owned(), Value::Object(least));
        object.insert("max".to_owned(), Value::Object(most));
        object.insert("rounds".to_owned(), Value::Array(self.rounds.iter().map(round).collect()));
        Value::Object(object)
    }

    /// A table for people.
    pub fn text(&self) -> String {
        let facts = self.facts.iter().filter(|(_, value)| !value.is_array() && !value.is_object());
        let facts: Vec<(&'static str, String)> = facts.map(|(name, value)| (*name, value.to_string())).collect();
        let rows = self.names().into_iter().filter_map(|name| {
            let (min, median, max) = self.spread(name)?;
            Some(vec![name.to_owned(), number(median), number(min), number(max)])
        });
        format!("{}\n{}", table::details(facts), table::table(&["FIGURE", "MEDIAN", "LEAST", "MOST"], rows))
    }
}

fn spread(mut values: Vec<f64>) -> Option<(f64, f64, f64)> {
    values.sort_by(f64::total_cmp);
    Some((*values.first()?, percentile(&values, 0.5)?, *values.last()?))
}

/// A value of sorted ones: 0.5 is the median.
pub fn percentile(sorted: &[f64], part: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = part * last as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(low + (high - low) * place.fract())
}

/// Four digits say more than anybody measures.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10f64.powi(3 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

fn number(value: f64) -> String {
    let value = rounded(value);
    if value.abs() >= 1000.0 { format!("{value:.0}") } else { format!("{value}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_object_with_medians_and_all_rounds() {
        let mut report = Report::new("tasks");
        report.fact("count", 10);
        for seconds in [3.0, 1.0, 2.0] {
            report.round(vec![("seconds", seconds), ("tasks_per_second", 10.0 / seconds)]);
        }
        let value = report.json();
        assert_eq!((&value["bench"], &value["count"], &value["repeat"]), (&json!("tasks"), &json!(10), &json!(3)));
        assert_eq!((&value["seconds"], &value["min"]["seconds"]), (&json!(2.0), &json!(1.0)));
        assert_eq!((&value["max"]["tasks_per_second"], &value["rounds"][0]["seconds"]), (&json!(10.0), &json!(3.0)));
        assert!(report.text().contains("tasks_per_second"));
    }

    #[test]
    fn percentiles_lie_between_their_neighbours() {
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!(percentile(&[4.0], 0.99), Some(4.0));
        assert_eq!(percentile(&[1.0, 2.0, 3.0, 4.0], 0.5), Some(2.5));
        assert_eq!(rounded(123_456.0), 123_500.0);
        assert_eq!(rounded(0.001_234_56), 0.001_235);
    }
}
