//! Pools that belong to a job or a schedule, and end with it.
//!
//! | known \ told | wanted | over, pool goes | over, pool stays |
//! |---|---|---|---|
//! | nothing | make it, or `failed` | `over` | `over` |
//! | made | - | delete the pool, `over` | `over` |
//! | failed | - | `over` | `over` |
//! | over | - | - | - |
//!
//! What is told may be repeated, late, or in the wrong order: `over` is final
//! and also kept of pools that were never made, so that a pool whose owner has
//! ended before it was made is not made any more. Ids of such pools are never
//! used twice.

use kiln_error::Error;
use kiln_time::Timestamp;

use super::PoolName;

/// What is known of such a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoPoolState {
    /// It was made; its user may have deleted it since.
    Made,
    /// It could not be made.
    Failed,
    /// Its owner has ended.
    Over,
}

impl AutoPoolState {
    /// As the store keeps it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Failed => "failed",
            Self::Over => "over",
        }
    }

    /// From [`AutoPoolState::name`].
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Made, Self::Failed, Self::Over].into_iter().find(|state| state.name() == name)
    }
}

/// A record of such a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutoPool {
    /// Its name.
    pub name: PoolName,
    /// The job, or the schedule, it is for.
    pub owner: String,
    /// What became of it.
    pub state: AutoPoolState,
    /// Code and text of the failure; empty otherwise.
    pub failure: (String, String),
    /// Since when.
    pub since: Timestamp,
}

/// What the owner's service tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// The owner is there.
    Wanted,
    /// The owner has ended.
    Over {
        /// The pool is its user's from now on.
        keep: bool,
    },
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Todo {
    /// Make the pool.
    Make,
    /// Note the end, and delete the pool if it is there.
    Delete,
    /// Note the end.
    Release,
    /// It was done before.
    Nothing,
}

/// What to do when `told`, if `known`.
pub fn decide(known: Option<AutoPoolState>, told: Told) -> Todo {
    use AutoPoolState as S;
    match (known, told) {
        (None, Told::Wanted) => Todo::Make,
        (Some(S::Made | S::Failed | S::Over), Told::Wanted) | (Some(S::Over), Told::Over { .. }) => Todo::Nothing,
        (Some(S::Made), Told::Over { keep: false }) => Todo::Delete,
        (Some(S::Made), Told::Over { keep: true }) | (None | Some(S::Failed), Told::Over { .. }) => Todo::Release,
    }
}

/// The word of Azure Batch for why such a pool could not be made.
pub fn failure_code(error: &Error) -> &'static str {
    let property = error.details().iter().find(|(name, _)| name == "PropertyName").map_or("", |(_, value)| value);
    match error.reason() {
        "PoolQuotaReached" | "AccountCoreQuotaReached" => "AutoPoolCreationFailedWithQuotaReached",
        "InvalidAutoScalingSettings" | "AutoScalingFormulaSyntaxError" | "AutoScalingFormulaTooLong" => {
            "InvalidAutoScaleFormulaInAutoPool"
        }
        "InvalidApplicationPackageReferences" => "InvalidApplicationPackageReferencesInAutoPool",
        _ if property.starts_with("enable_auto_scale") || property.starts_with("auto_scale") => {
            "InvalidAutoScaleFormulaInAutoPool"
        }
        _ if property.starts_with("application_packages") => "InvalidApplicationPackageReferencesInAutoPool",
        _ => "InvalidAutoPoolSettings",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_of_the_table() {
        use AutoPoolState as S;
        let told = [Told::Wanted, Told::Over { keep: false }, Told::Over { keep: true }];
        for (known, cells) in [
            (None, [Todo::Make, Todo::Release, Todo::Release]),
            (Some(S::Made), [Todo::Nothing, Todo::Delete, Todo::Release]),
            (Some(S::Failed), [Todo::Nothing, Todo::Release, Todo::Release]),
            (Some(S::Over), [Todo::Nothing; 3]),
        ] {
            for (told, cell) in told.into_iter().zip(cells) {
                assert_eq!(decide(known, told), cell, "{told:?} when {known:?}");
            }
        }
    }

    #[test]
    fn failures_have_the_words_of_azure() {
        for (property, code) in [
            ("enable_auto_scale", "InvalidAutoScaleFormulaInAutoPool"),
            ("application_packages.application_id", "InvalidApplicationPackageReferencesInAutoPool"),
            ("target_dedicated_nodes", "InvalidAutoPoolSettings"),
        ] {
            assert_eq!(failure_code(&Error::invalid_property(property, "", "wrong")), code);
        }
        let quota = Error::new(kiln_error::Kind::FailedPrecondition, "PoolQuotaReached", "full");
        assert_eq!(failure_code(&quota), "AutoPoolCreationFailedWithQuotaReached");
    }
}
