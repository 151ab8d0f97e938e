//! The `poolInfo` of a job: the id of a pool, or an `autoPoolSpecification`.

use kiln_error::Error;
use kiln_proto::job::v1::{AutoPool, AutoPoolLifetime, JobSpec};
use serde_json::{Value, json};

use super::json::{Fields, Out, word};
use super::pool_json;
use super::version::Version;

const LIFETIMES: &[(&str, AutoPoolLifetime)] =
    &[("job", AutoPoolLifetime::Job), ("jobschedule", AutoPoolLifetime::JobSchedule)];

/// What a change of a job's `poolInfo` asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolChange {
    /// To move to another pool.
    pub pool_id: Option<String>,
    /// To keep the pool that was made for the job, or not.
    pub keep_alive: Option<bool>,
}

/// The pool of a new job: an id, or what is to be made.
///
/// # Errors
/// If there is neither, or both, or a property is wrong.
pub fn read_new(fields: &Fields<'_>) -> Result<(String, Option<AutoPool>), Error> {
    let info = fields.object("poolInfo")?.ok_or_else(|| fields.missing("poolInfo"))?;
    let auto = info.object("autoPoolSpecification")?;
    match (info.text("poolId")?, auto) {
        (Some(id), None) => Ok((id, None)),
        (None, Some(auto)) => Ok((String::new(), Some(read_auto(&auto)?))),
        (None, None) => Err(info.missing("poolId")),
        (Some(id), Some(_)) => Err(both(&info, &id)),
    }
}

fn both(info: &Fields<'_>, id: &str) -> Error {
    let why = "only one of poolId and autoPoolSpecification may be given";
    Error::invalid_property(&info.path_of("poolId"), id, why)
}

fn read_auto(fields: &Fields<'_>) -> Result<AutoPool, Error> {
    let body = fields.get("pool").ok_or_else(|| fields.missing("pool"))?;
    let pool = fields.object("pool")?.ok_or_else(|| fields.missing("pool"))?;
    Ok(AutoPool {
        id_prefix: fields.text_or_empty("autoPoolIdPrefix")?,
        lifetime: read_lifetime(fields)?.ok_or_else(|| fields.missing("poolLifetimeOption"))?.into(),
        keep_alive: fields.boolean("keepAlive")?.unwrap_or(false),
        pool: Some(pool_json::read_spec(body, &pool)?),
    })
}

fn read_lifetime(fields: &Fields<'_>) -> Result<Option<AutoPoolLifetime>, Error> {
    fields.choice("poolLifetimeOption", LIFETIMES)
}

/// As GET answers it.
pub fn write(spec: &JobSpec, version: Version) -> Value {
    match &spec.auto_pool {
        None => json!({"poolId": spec.pool_id}),
        Some(auto) => json!({"autoPoolSpecification": write_auto(auto, version)}),
    }
}

fn write_auto(auto: &AutoPool, version: Version) -> Value {
    let mut out = Out::new();
    out.put_text("autoPoolIdPrefix", &auto.id_prefix)
        .put("poolLifetimeOption", word(LIFETIMES, auto.lifetime()).unwrap_or("job"))
        .put("keepAlive", auto.keep_alive)
        .put_some("pool", auto.pool.as_ref().map(|pool| pool_json::write_spec(pool, version)));
    out.done()
}

/// What the `poolInfo` of a PATCH or PUT changes of a job that is like
/// `present`. Clients send back what they read: that is no change. Of a pool
/// that was made for the job only `keepAlive` can change.
///
/// # Errors
/// Names the property that cannot change.
pub fn read_change(fields: &Fields<'_>, present: &JobSpec) -> Result<PoolChange, Error> {
    let Some(info) = fields.object("poolInfo")? else { return Ok(PoolChange::default()) };
    let auto = info.object("autoPoolSpecification")?;
    match (info.text("poolId")?, auto) {
        (Some(id), None) => {
            let same = present.auto_pool.is_none() && present.pool_id.eq_ignore_ascii_case(&id);
            Ok(PoolChange { pool_id: (!same).then_some(id), keep_alive: None })
        }
        (None, Some(auto)) => {
            let Some(made) = &present.auto_pool else {
                let why = "the job has a pool of its user's; give poolId to move it to another";
                return Err(Error::invalid_property(&info.path_of("autoPoolSpecification"), "", why));
            };
            refuse_other(&auto, made)?;
            let keep_alive = auto.boolean("keepAlive")?.filter(|keep| *keep != made.keep_alive);
            Ok(PoolChange { pool_id: None, keep_alive })
        }
        (None, None) => Err(info.missing("poolId")),
        (Some(id), Some(_)) => Err(both(&info, &id)),
    }
}

/// Refuses what differs from `made` beside `keepAlive`; what is not given does
/// not differ.
fn refuse_other(fields: &Fields<'_>, made: &AutoPool) -> Result<(), Error> {
    let fixed = |name: &str| Err(Error::invalid_property(&fields.path_of(name), "", "only keepAlive can be changed"));
    if fields.text("autoPoolIdPrefix")?.is_some_and(|prefix| prefix != made.id_prefix) {
        return fixed("autoPoolIdPrefix");
    }
    if read_lifetime(fields)?.is_some_and(|lifetime| lifetime != lifetime_of(made)) {
        return fixed("poolLifetimeOption");
    }
    let (Some(body), Some(pool)) = (fields.get("pool"), fields.object("pool")?) else { return Ok(()) };
    let wanted = pool_json::read_spec(body, &pool)?;
    let present = made.pool.clone().unwrap_or_default();
    // As answers have them: defaults are filled in, secrets are gone.
    if pool_json::write_spec(&wanted, Version::LATEST) != pool_json::write_spec(&present, Version::LATEST) {
        return fixed("pool");
    }
    Ok(())
}

fn lifetime_of(auto: &AutoPool) -> AutoPoolLifetime {
    match auto.lifetime() {
        AutoPoolLifetime::Unspecified => AutoPoolLifetime::Job,
        known => known,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auto_body() -> Value {
        json!({"poolInfo": {"autoPoolSpecification": {
            "autoPoolIdPrefix": "mine", "poolLifetimeOption": "jobSchedule", "keepAlive": false,
            "pool": {"vmSize": "STANDARD_A1", "targetDedicatedNodes": "2",
                "virtualMachineConfiguration": {"nodeAgentSKUId": "batch.node.ubuntu 22.04",
                    "imageReference": {"publisher": "canonical", "offer": "o", "sku": "s"}},
                "userAccounts": [{"name": "u", "password": "geheim"}]}}}})
    }

    fn job(body: &Value) -> JobSpec {
        let (pool_id, auto_pool) = read_new(&Fields::root(body).unwrap()).unwrap();
        JobSpec { pool_id, auto_pool, ..JobSpec::default() }
    }

    fn change(body: &Value, present: &JobSpec) -> Result<PoolChange, Error> {
        read_change(&Fields::root(body).unwrap(), present)
    }

    #[test]
    fn an_auto_pool_comes_back_with_its_defaults_and_without_secrets() {
        let spec = job(&auto_body());
        let auto = spec.auto_pool.as_ref().unwrap();
        assert_eq!(auto.pool.as_ref().unwrap().user_accounts[0].password, "geheim");
        assert_eq!((auto.lifetime(), auto.id_prefix.as_str()), (AutoPoolLifetime::JobSchedule, "mine"));
        let answer = write(&spec, Version::LATEST);
        let pool = &answer["autoPoolSpecification"]["pool"];
        assert_eq!(answer["autoPoolSpecification"]["poolLifetimeOption"], "jobschedule");
        assert_eq!((&pool["vmSize"], &pool["targetDedicatedNodes"]), (&json!("standard_a1"), &json!(2)));
        assert_eq!(pool["virtualMachineConfiguration"]["imageReference"]["version"], "latest");
        assert_eq!(pool["taskSlotsPerNode"], 1);
        assert!(!answer.to_string().contains("geheim"));
        let old = write(&spec, Version::parse("2016-07-01.3.1").unwrap());
        assert_eq!(old["autoPoolSpecification"]["pool"]["targetDedicated"], 2);
    }

    #[test]
    fn a_new_job_needs_exactly_one_pool() {
        let read = |body: Value| read_new(&Fields::root(&body).unwrap());
        assert_eq!(read(json!({"poolInfo": {"poolId": "p"}})).unwrap(), ("p".to_owned(), None));
        let property = |body: Value| read(body).unwrap_err().details()[0].1.clone();
        assert_eq!(property(json!({})), "poolInfo");
        assert_eq!(property(json!({"poolInfo": {}})), "poolInfo.poolId");
        let base = "poolInfo.autoPoolSpecification";
        let auto = |auto: Value| json!({"poolInfo": {"autoPoolSpecification": auto}});
        assert_eq!(property(auto(json!({}))), format!("{base}.pool"));
        assert_eq!(property(auto(json!({"pool": {"vmSize": "x"}}))), format!("{base}.poolLifetimeOption"));
        assert_eq!(property(auto(json!({"poolLifetimeOption": "job", "pool": {}}))), format!("{base}.pool.vmSize"));
        assert_eq!(property(json!({"poolInfo": {"poolId": "p", "autoPoolSpecification": {}}})), "poolInfo.poolId");
    }

    #[test]
    fn what_was_read_is_no_change_and_only_keep_alive_can_change() {
        let spec = job(&auto_body());
        let mut read = json!({"poolInfo": write(&spec, Version::LATEST)});
        assert_eq!(change(&read, &spec).unwrap(), PoolChange::default());
        read["poolInfo"]["autoPoolSpecification"]["keepAlive"] = true.into();
        assert_eq!(change(&read, &spec).unwrap(), PoolChange { pool_id: None, keep_alive: Some(true) });
        let short = json!({"poolInfo": {"autoPoolSpecification": {"keepAlive": "true"}}});
        assert_eq!(change(&short, &spec).unwrap().keep_alive, Some(true));
        for (pointer, value) in [
            ("/autoPoolIdPrefix", json!("other")),
            ("/poolLifetimeOption", json!("job")),
            ("/pool/targetDedicatedNodes", json!(3)),
            ("/pool/virtualMachineConfiguration/nodeAgentSKUId", json!("x")),
        ] {
            let mut other = read.clone();
            *other.pointer_mut(&format!("/poolInfo/autoPoolSpecification{pointer}")).unwrap() = value;
            assert_eq!(change(&other, &spec).unwrap_err().reason(), "InvalidPropertyValue", "{pointer}");
        }
    }

    #[test]
    fn pools_of_users_are_changed_by_their_id() {
        let own = JobSpec { pool_id: "P1".into(), ..JobSpec::default() };
        assert_eq!(change(&json!({}), &own).unwrap(), PoolChange::default());
        assert_eq!(change(&json!({"poolInfo": {"poolId": "p1"}}), &own).unwrap(), PoolChange::default());
        let moved = change(&json!({"poolInfo": {"poolId": "p2"}}), &own).unwrap();
        assert_eq!(moved.pool_id.as_deref(), Some("p2"));
        assert!(change(&auto_body(), &own).is_err());
        assert!(change(&json!({"poolInfo": {}}), &own).is_err());
    }
}
