//! Leases of pools.

use std::collections::HashSet;
use std::time::Duration;

use futures::future::BoxFuture;

use super::*;
use crate::store::leases::{ChangeRow, Claim, Fence, Held, LeaseStore, Owner, PoolKey, Presence, Standing};

/// How long a lease or a replica that is over is remembered: longer than any
/// scheduler with the old epoch could still believe in it.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Whether the scheduler that commits still owns its pool. Nobody can take the
/// pool between this and the commit: writers of a database take turns.
pub(super) fn holds(connection: &Connection, account: &AccountName, fence: &Fence) -> Result<bool, StoreError> {
    Ok(connection
        .prepare_cached("SELECT 1 FROM pool_leases WHERE account = ?1 AND pool_key = ?2 AND owner = ?3 AND epoch = ?4")?
        .exists(params![account.key(), fence.pool.key(), &*fence.owner, signed(fence.epoch)])?)
}

/// `always`: nobody else can have it.
fn claim(
    connection: &Connection,
    me: &str,
    always: bool,
    presence: &Presence,
    (account, pool): &PoolKey,
) -> Result<Claim, StoreError> {
    let now = connection.now_micros()?;
    let expires = now.saturating_add(micros(presence.lease));
    let taken: Option<i64> = connection
        .prepare_cached(
            "INSERT INTO pool_leases (account, pool_key, pool_id, owner, endpoint, epoch, expires)
             VALUES (?1, ?2, ?3, ?4, ?5, 1, ?6)
             ON CONFLICT (account, pool_key) DO UPDATE SET owner = excluded.owner, endpoint = excluded.endpoint,
             epoch = pool_leases.epoch + 1, expires = excluded.expires
             WHERE pool_leases.expires <= ?7 OR pool_leases.owner = excluded.owner
             RETURNING epoch",
        )?
        .query_row(
            params![
                account.key(),
                pool.key(),
                pool.as_str(),
                me,
                &*presence.endpoint,
                expires,
                if always { i64::MAX } else { now },
            ],
            |row| row.get(0),
        )
        .optional()?;
    match taken {
        Some(epoch) => Ok(Claim::Ours(unsigned(epoch))),
        None => owner(connection, account, pool, 0)?
            .map(Claim::Other)
            .ok_or_else(|| damaged(format!("the lease of pool {pool} is neither free nor anybody's"))),
    }
}

fn owner(connection: &Connection, account: &AccountName, pool: &PoolId, now: i64) -> Result<Option<Owner>, StoreError> {
    Ok(connection
        .prepare_cached(
            "SELECT owner, endpoint FROM pool_leases WHERE account = ?1 AND pool_key = ?2 AND expires > ?3",
        )?
        .query_row(params![account.key(), pool.key(), now], |row| Ok(Owner { id: row.get(0)?, endpoint: row.get(1)? }))
        .optional()?)
}

fn renew(connection: &Connection, me: &str, presence: &Presence) -> Result<Vec<Held>, StoreError> {
    let expires = connection.now_micros()?.saturating_add(micros(presence.lease));
    connection
        .prepare_cached(
            "INSERT INTO replicas (id, endpoint, expires) VALUES (?1, ?2, ?3)
             ON CONFLICT (id) DO UPDATE SET endpoint = excluded.endpoint, expires = excluded.expires",
        )?
        .execute(params![me, &*presence.endpoint, expires])?;
    connection.prepare_cached("UPDATE pool_leases SET expires = ?2 WHERE owner = ?1")?.execute(params![me, expires])?;
    let mut statement =
        connection.prepare_cached("SELECT account, pool_id, epoch FROM pool_leases WHERE owner = ?1")?;
    let mut rows = statement.query([me])?;
    let mut held = Vec::new();
    while let Some(row) = rows.next()? {
        let (account, pool) = key(&row.get::<String>(0)?, &row.get::<String>(1)?)?;
        held.push(Held { account, pool, epoch: unsigned(row.get(2)?) });
    }
    Ok(held)
}

fn key(account: &str, pool: &str) -> Result<PoolKey, StoreError> {
    Ok((AccountName::parse(account).map_err(damaged)?, PoolId::parse(pool).map_err(damaged)?))
}

fn standing(connection: &Connection, me: &str, always: bool) -> Result<Standing, StoreError> {
    let now = connection.now_micros()?;
    let pools = schedule::pools(connection)?;
    let mut statement =
        connection.prepare_cached("SELECT account, pool_id, owner FROM pool_leases WHERE expires > ?1")?;
    let mut rows = statement.query([now])?;
    let (mut ours, mut others) = (HashSet::new(), HashSet::new());
    while let Some(row) = rows.next()? {
        let key = key(&row.get::<String>(0)?, &row.get::<String>(1)?)?;
        if row.get::<String>(2)? == me {
            ours.insert(key);
        } else if !always {
            others.insert(key);
        }
    }
    drop(rows);
    let replicas: i64 = connection
        .prepare_cached("SELECT count(*) FROM replicas WHERE expires > ?1 AND id <> ?2")?
        .query_row(params![now, me], |row| row.get(0))?;
    Ok(Standing {
        ours: pools.iter().filter(|pool| ours.contains(*pool)).count(),
        all: pools.len(),
        free: pools.into_iter().filter(|pool| !ours.contains(pool) && !others.contains(pool)).collect(),
        replicas: usize::try_from(replicas).unwrap_or(0) + 1,
    })
}

fn forget(connection: &Connection, me: &str) -> Result<usize, StoreError> {
    let over = connection.now_micros()?.saturating_sub(micros(REMEMBERED));
    let leases = connection
        .prepare_cached("DELETE FROM pool_leases WHERE expires < ?1 AND owner <> ?2")?
        .execute(params![over, me])?;
    let replicas = connection
        .prepare_cached("DELETE FROM replicas WHERE expires < ?1 AND id <> ?2")?
        .execute(params![over, me])?;
    Ok(leases + replicas + changes::forget(connection)?)
}

#[async_trait]
impl LeaseStore for SqlStore {
    fn replica(&self) -> Arc<str> {
        self.replica.clone()
    }

    fn is_shared(&self) -> bool {
        self.shared
    }

    async fn claim_pools(&self, presence: &Presence, pools: Vec<PoolKey>) -> Result<Vec<Claim>, Error> {
        let (me, presence, always) = (self.replica.clone(), presence.clone(), !self.shared);
        self.database
            .write(move |connection| {
                let claims = pools.iter().map(|pool| claim(connection, &me, always, &presence, pool));
                Ok(claims.collect::<Result<_, StoreError>>()?)
            })
            .await
    }

    async fn renew_pools(&self, presence: &Presence) -> Result<Vec<Held>, Error> {
        let (me, presence) = (self.replica.clone(), presence.clone());
        self.database.write(move |connection| Ok(renew(connection, &me, &presence)?)).await
    }

    async fn release_pools(&self) -> Result<(), Error> {
        let me = self.replica.clone();
        self.database
            .write(move |connection| {
                let release = || -> Result<(), StoreError> {
                    connection
                        .prepare_cached("UPDATE pool_leases SET expires = 0 WHERE owner = ?1")?
                        .execute([&*me])?;
                    connection.prepare_cached("DELETE FROM replicas WHERE id = ?1")?.execute([&*me])?;
                    Ok(())
                };
                Ok(release()?)
            })
            .await
    }

    async fn owner_of(&self, account: &AccountName, pool: &PoolId) -> Result<Option<Owner>, Error> {
        let (account, pool) = (account.clone(), pool.clone());
        self.database
            .read(move |connection| {
                let now = connection.now_micros().map_err(db)?;
                Ok(owner(connection, &account, &pool, now)?)
            })
            .await
    }

    async fn standing(&self) -> Result<Standing, Error> {
        let (me, always) = (self.replica.clone(), !self.shared);
        self.database.read(move |connection| Ok(standing(connection, &me, always)?)).await
    }

    async fn last_change(&self) -> Result<u64, Error> {
        self.database.read(move |connection| Ok(changes::last(connection)?)).await
    }

    async fn changes(&self, after: u64, limit: u32) -> Result<Vec<ChangeRow>, Error> {
        let me = self.replica.clone();
        self.database.read(move |connection| Ok(changes::after(connection, &me, after, limit)?)).await
    }

    async fn forget_leases(&self) -> Result<usize, Error> {
        let me = self.replica.clone();
        self.database.write(move |connection| Ok(forget(connection, &me)?)).await
    }

    fn committed_elsewhere(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.database.committed_elsewhere())
    }
}
