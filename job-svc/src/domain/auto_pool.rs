//! Pools that jobs bring along.
//!
//! A job names its pool, or says what a pool made for it shall be like. Such a
//! pool belongs to the job, or to the schedule of the job; its id is chosen
//! when the first job that needs it is created. pool-svc makes it when it hears
//! of the job, and judges the pool's own settings.

use kiln_ids::{InvalidId, PoolId};
use kiln_proto::job::v1::{AutoPool, AutoPoolLifetime, JobSpec};

use super::Error;

/// Characters of a prefix.
const MAX_PREFIX: usize = 20;

/// Where the tasks of a job run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolChoice {
    /// On a pool that its user made, or will make.
    Named(PoolId),
    /// On a pool that is made for it; its id begins with this.
    Auto(String),
}

impl PoolChoice {
    /// The pool's id; `unique` becomes the end of a generated one.
    ///
    /// # Errors
    /// If `unique` is not fit for an id.
    pub fn resolve(self, unique: &str) -> Result<PoolId, InvalidId> {
        match self {
            Self::Named(pool) => Ok(pool),
            Self::Auto(prefix) if prefix.is_empty() => PoolId::parse(unique),
            Self::Auto(prefix) => PoolId::parse(&format!("{prefix}_{unique}")),
        }
    }
}

/// What a job's spec says about its pool.
///
/// # Errors
/// The first thing that is wrong.
pub fn choice(spec: &JobSpec) -> Result<PoolChoice, Error> {
    let Some(auto) = &spec.auto_pool else {
        if spec.pool_id.is_empty() {
            return Err(Error::Missing("poolInfo.poolId".to_owned()));
        }
        let pool = PoolId::parse(&spec.pool_id).map_err(|why| Error::bad_id("poolInfo.poolId", &spec.pool_id, &why))?;
        return Ok(PoolChoice::Named(pool));
    };
    if !spec.pool_id.is_empty() {
        let why = "cannot be given together with autoPoolSpecification";
        return Err(Error::invalid("poolInfo.poolId", &spec.pool_id, why));
    }
    const FIELD: &str = "poolInfo.autoPoolSpecification";
    let prefix = auto.id_prefix.as_str();
    if prefix.len() > MAX_PREFIX || !(prefix.is_empty() || PoolId::parse(prefix).is_ok()) {
        let why = format!("must have at most {MAX_PREFIX} characters of A-Z a-z 0-9 - _");
        return Err(Error::invalid(format!("{FIELD}.autoPoolIdPrefix"), prefix, why));
    }
    if AutoPoolLifetime::try_from(auto.lifetime).is_err() {
        return Err(Error::invalid(format!("{FIELD}.poolLifetimeOption"), auto.lifetime, "is not known"));
    }
    if auto.pool.is_none() {
        return Err(Error::Missing(format!("{FIELD}.pool")));
    }
    Ok(PoolChoice::Auto(prefix.to_owned()))
}

/// Whether the pool lives as long as the schedule of the job.
pub fn is_of_schedule(auto: &AutoPool) -> bool {
    auto.lifetime() == AutoPoolLifetime::JobSchedule
}

/// Refuses what only jobs of schedules can have.
///
/// # Errors
/// If the pool shall live as long as a schedule.
pub fn check_without_schedule(spec: &JobSpec) -> Result<(), Error> {
    if spec.auto_pool.as_ref().is_some_and(is_of_schedule) {
        let field = "poolInfo.autoPoolSpecification.poolLifetimeOption";
        return Err(Error::invalid(field, "jobschedule", "is for jobs of schedules; this one can have job"));
    }
    Ok(())
}

/// The spec as clients see it.
pub fn without_secrets(mut spec: JobSpec) -> JobSpec {
    spec.auto_pool = spec.auto_pool.map(without_passwords);
    spec
}

/// What leaves this service, to clients and over the bus, where everybody reads
/// who may read events: the pool is made without its users' passwords.
pub fn without_passwords(mut auto: AutoPool) -> AutoPool {
    auto.pool.iter_mut().flat_map(|pool| &mut pool.user_accounts).for_each(|user| user.password.clear());
    auto
}

#[cfg(test)]
mod tests {
    use kiln_proto::pool::v1::{PoolSpec, UserAccount};

    use super::*;

    fn auto(prefix: &str) -> AutoPool {
        AutoPool { id_prefix: prefix.into(), pool: Some(PoolSpec::default()), ..AutoPool::default() }
    }

    fn spec(pool: &str, auto: Option<AutoPool>) -> JobSpec {
        JobSpec { pool_id: pool.into(), auto_pool: auto, ..JobSpec::default() }
    }

    #[test]
    fn a_job_names_a_pool_or_describes_one() {
        let named = choice(&spec("p", None)).unwrap();
        assert_eq!(named.resolve("x").unwrap().as_str(), "p");
        let made = choice(&spec("", Some(auto("Tmp")))).unwrap();
        assert_eq!(made.resolve("0-1").unwrap().as_str(), "Tmp_0-1");
        assert_eq!(choice(&spec("", Some(auto("")))).unwrap().resolve("0-1").unwrap().as_str(), "0-1");
        for (wrong, field) in [
            (spec("", None), "poolInfo.poolId"),
            (spec("p", Some(auto(""))), "poolInfo.poolId"),
            (spec("", Some(auto(&"x".repeat(21)))), "poolInfo.autoPoolSpecification.autoPoolIdPrefix"),
            (spec("", Some(auto("a b"))), "poolInfo.autoPoolSpecification.autoPoolIdPrefix"),
            (spec("", Some(AutoPool { pool: None, ..auto("a") })), "poolInfo.autoPoolSpecification.pool"),
            (
                spec("", Some(AutoPool { lifetime: 9, ..auto("a") })),
                "poolInfo.autoPoolSpecification.poolLifetimeOption",
            ),
        ] {
            let text = choice(&wrong).unwrap_err().to_string();
            assert!(text.starts_with(field), "{text}");
        }
        let of_schedule = AutoPool { lifetime: AutoPoolLifetime::JobSchedule.into(), ..auto("a") };
        assert!(check_without_schedule(&spec("", Some(of_schedule))).is_err());
    }

    #[test]
    fn passwords_are_not_shown() {
        let users = vec![UserAccount { name: "ann".into(), password: "secret".into(), ..UserAccount::default() }];
        let pool = Some(PoolSpec { user_accounts: users, ..PoolSpec::default() });
        let shown = without_secrets(spec("", Some(AutoPool { pool, ..auto("") })));
        assert!(!format!("{shown:?}").contains("secret") && format!("{shown:?}").contains("ann"));
    }
}
