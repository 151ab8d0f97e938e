//! [`Store`] in SQL, whichever database is behind it.

use async_trait::async_trait;
use kiln_ids::{AccountName, PoolId};
use kiln_store::sql::{Connection, Row, params};
use kiln_store::{Database, Durability, Migration, StoreConfig, StoreError as DatabaseError, outbox, requests};
use kiln_time::Timestamp;
use serde::de::DeserializeOwned;

use crate::domain::auto_pool::{AutoPool, AutoPoolState};
use crate::domain::{Node, NodeName, Pool, PoolName};
use crate::store::{
    AutoPoolWrite, Change, NodeWrite, Outcome, PoolCounts, PoolWrite, Replica, StateCounts, Store, StoreError, events,
};

const SERVICE: &str = "pool-svc";

const MIGRATIONS: &[Migration] = &[
    Migration::new(1, include_str!("schema.sql")),
    Migration::new(2, outbox::SCHEMA),
    Migration::new(3, requests::SCHEMA),
    Migration::new(4, include_str!("auto_pools.sql")),
    Migration::new(5, include_str!("serving.sql")),
];

/// Pools and nodes in `pool-svc.db`.
#[derive(Debug, Clone)]
pub struct SqlStore {
    database: Database,
}

impl SqlStore {
    /// Opens the database, making it if needed.
    ///
    /// # Errors
    /// If it cannot be opened or was written by a newer Kiln.
    pub async fn open(config: impl Into<StoreConfig>) -> Result<Self, StoreError> {
        Ok(Self { database: Database::open(config, Durability::PowerLoss, MIGRATIONS).await? })
    }

    /// For the outbox relay.
    pub fn database(&self) -> Database {
        self.database.clone()
    }
}

const POOL_COLUMNS: &str = "revision, record, settings";
const NODE_COLUMNS: &str = "revision, record, report, start_task";

fn sql(error: kiln_store::sql::Error) -> StoreError {
    StoreError::Failed(error.into())
}

fn decode<T: DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Failed(DatabaseError::Damaged(error.to_string())))
}

fn encode<T: serde::Serialize>(record: &T) -> Result<String, StoreError> {
    serde_json::to_string(record).map_err(|error| StoreError::Failed(DatabaseError::Damaged(error.to_string())))
}

fn read_pool(row: Row<'_>) -> Result<Pool, StoreError> {
    let text = row.get_ref(1).map_err(sql)?.as_str().map_err(sql)?;
    let mut pool: Pool = decode(text)?;
    pool.revision = row.get(0).map_err(sql)?;
    pool.settings = row.get(2).map_err(sql)?;
    Ok(pool)
}

fn read_node(row: Row<'_>) -> Result<Node, StoreError> {
    let text = row.get_ref(1).map_err(sql)?.as_str().map_err(sql)?;
    let mut node: Node = decode(text)?;
    node.revision = row.get(0).map_err(sql)?;
    node.report = row.get(2).map_err(sql)?;
    node.start_task = row.get(3).map_err(sql)?;
    Ok(node)
}

fn collect<T>(
    connection: &Connection,
    statement: &str,
    parameters: impl kiln_store::sql::Params,
    read: impl Fn(Row<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut statement = connection.prepare_cached(statement).map_err(sql)?;
    let mut rows = statement.query(parameters).map_err(sql)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(sql)? {
        found.push(read(row)?);
    }
    Ok(found)
}

fn pool_keys(name: &PoolName) -> (String, String) {
    (name.account.key().into_owned(), name.pool.key().into_owned())
}

fn select_pool(connection: &Connection, account: &str, pool: &str) -> Result<Option<Pool>, StoreError> {
    let statement = format!("SELECT {POOL_COLUMNS} FROM pools WHERE account = ?1 AND pool = ?2");
    Ok(collect(connection, &statement, params![account, pool], read_pool)?.pop())
}

fn select_nodes(
    connection: &Connection,
    account: &str,
    pool: &str,
    after: &str,
    limit: i64,
) -> Result<Vec<Node>, StoreError> {
    let statement = format!(
        "SELECT {NODE_COLUMNS} FROM nodes WHERE account = ?1 AND pool = ?2 AND node > ?3 ORDER BY node LIMIT ?4"
    );
    collect(connection, &statement, params![account, pool, after, limit], read_node)
}

struct CountRow {
    pool: String,
    dedicated: bool,
    state: String,
    count: u32,
}

impl CountRow {
    fn add_to(self, counts: &mut PoolCounts) {
        let of_kind = if self.dedicated { &mut counts.dedicated } else { &mut counts.low_priority };
        of_kind.insert(self.state, self.count);
    }
}

fn count_rows(connection: &Connection, account: &str, first: &str, last: &str) -> Result<Vec<CountRow>, StoreError> {
    collect(
        connection,
        "SELECT pool, dedicated, state, count(*) FROM nodes
         WHERE account = ?1 AND pool BETWEEN ?2 AND ?3 GROUP BY pool, dedicated, state",
        params![account, first, last],
        |row| {
            Ok(CountRow {
                pool: row.get(0).map_err(sql)?,
                dedicated: row.get(1).map_err(sql)?,
                state: row.get(2).map_err(sql)?,
                count: row.get(3).map_err(sql)?,
            })
        },
    )
}

/// Whether exactly one row was written; none means that somebody was faster.
fn one(rows: usize) -> Result<(), StoreError> {
    if rows == 1 { Ok(()) } else { Err(StoreError::Conflict) }
}

fn write_pool(connection: &Connection, account: &str, key: &str, write: &PoolWrite) -> Result<(), StoreError> {
    match write {
        PoolWrite::Insert(pool) => {
            let rows = connection
                .prepare_cached("INSERT INTO pools VALUES (?1, ?2, 1, ?3, ?4) ON CONFLICT (account, pool) DO NOTHING")
                .map_err(sql)?
                .execute(params![account, key, encode(pool)?, pool.settings])
                .map_err(sql)?;
            if rows == 0 { Err(StoreError::PoolExists) } else { Ok(()) }
        }
        PoolWrite::Update(pool) => one(connection
            .prepare_cached(
                "UPDATE pools SET revision = revision + 1, record = ?4, settings = ?5
                 WHERE account = ?1 AND pool = ?2 AND revision = ?3",
            )
            .map_err(sql)?
            .execute(params![account, key, pool.revision, encode(pool)?, pool.settings])
            .map_err(sql)?),
        PoolWrite::Delete(pool) => one(connection
            .prepare_cached("DELETE FROM pools WHERE account = ?1 AND pool = ?2 AND revision = ?3")
            .map_err(sql)?
            .execute(params![account, key, pool.revision])
            .map_err(sql)?),
    }
}

fn write_node(connection: &Connection, account: &str, pool: &str, write: &NodeWrite) -> Result<(), StoreError> {
    match write {
        NodeWrite::Insert(node) => one(connection
            .prepare_cached(
                "INSERT INTO nodes VALUES (?1, ?2, ?3, 1, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (account, pool, node) DO NOTHING",
            )
            .map_err(sql)?
            .execute(params![
                account,
                pool,
                node.id.key(),
                node.dedicated,
                node.state.name(),
                encode(node)?,
                node.report,
                node.start_task
            ])
            .map_err(sql)?),
        NodeWrite::Update(node) => one(connection
            .prepare_cached(
                "UPDATE nodes SET revision = revision + 1, state = ?5, record = ?6, report = ?7, start_task = ?8
                 WHERE account = ?1 AND pool = ?2 AND node = ?3 AND revision = ?4",
            )
            .map_err(sql)?
            .execute(params![
                account,
                pool,
                node.id.key(),
                node.revision,
                node.state.name(),
                encode(node)?,
                node.report,
                node.start_task
            ])
            .map_err(sql)?),
        NodeWrite::Delete(id) => one(connection
            .prepare_cached("DELETE FROM nodes WHERE account = ?1 AND pool = ?2 AND node = ?3")
            .map_err(sql)?
            .execute(params![account, pool, id.key()])
            .map_err(sql)?),
    }
}

fn select_auto_pool(connection: &Connection, name: &PoolName) -> Result<Option<AutoPool>, StoreError> {
    let (account, key) = pool_keys(name);
    let damaged = |what: String| StoreError::Failed(DatabaseError::Damaged(what));
    let read = |row: Row<'_>| {
        let text = |at| row.get::<String>(at).map_err(sql);
        let state = text(2)?;
        Ok(AutoPool {
            name: PoolName {
                account: name.account.clone(),
                pool: PoolId::parse(&text(0)?).map_err(|why| damaged(why.to_string()))?,
            },
            owner: text(1)?,
            state: AutoPoolState::parse(&state).ok_or_else(|| damaged(format!("auto pool state {state}")))?,
            failure: (text(3)?, text(4)?),
            since: Timestamp::from_micros(row.get(5).map_err(sql)?),
        })
    };
    let statement =
        "SELECT pool_id, owner, state, code, message, since FROM auto_pools WHERE account = ?1 AND pool = ?2";
    Ok(collect(connection, statement, params![account, key], read)?.pop())
}

fn write_auto_pool(
    connection: &Connection,
    account: &str,
    pool: &str,
    write: &AutoPoolWrite,
) -> Result<(), StoreError> {
    let (row, statement, expected) = match write {
        AutoPoolWrite::Insert(row) => (
            row,
            "INSERT INTO auto_pools VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (account, pool) DO NOTHING",
            None,
        ),
        AutoPoolWrite::Replace { expected, with } => (
            with,
            "UPDATE auto_pools SET pool_id = ?3, owner = ?4, state = ?5, code = ?6, message = ?7, since = ?8
             WHERE account = ?1 AND pool = ?2 AND state = ?9",
            Some(expected.name()),
        ),
    };
    let (state, since) = (row.state.name(), row.since.as_micros());
    let (code, message) = &row.failure;
    let values = params![account, pool, row.name.pool.as_str(), row.owner, state, code, message, since, expected];
    let given = if expected.is_some() { values } else { &values[..8] };
    one(connection.execute(statement, given).map_err(sql)?)
}

fn commit(connection: &Connection, change: Change, traceparent: &str) -> Result<Outcome, StoreError> {
    let (account, pool) = pool_keys(&change.pool);
    if let Some(request) = &change.request {
        if let Some(answer) = requests::lookup(connection, &account, request.method, &request.id)? {
            return Ok(Outcome::Repeated(answer));
        }
        let now = change.now.as_micros();
        requests::record(connection, &account, request.method, &request.id, &request.answer, now)?;
    }
    if let Some(write) = &change.auto_pool {
        write_auto_pool(connection, &account, &pool, write)?;
    }
    // Nodes refer to their pool: it is made before them and removed after them.
    let (first, last) = match &change.pool_write {
        Some(PoolWrite::Delete(_)) => (None, change.pool_write.as_ref()),
        other => (other.as_ref(), None),
    };
    if let Some(write) = first {
        write_pool(connection, &account, &pool, write)?;
    }
    for write in &change.node_writes {
        write_node(connection, &account, &pool, write)?;
    }
    if let Some(write) = last {
        write_pool(connection, &account, &pool, write)?;
    }
    let announced = change.events.into_iter().map(|event| events::to_outbox(event, traceparent)).collect();
    outbox::append(connection, SERVICE, announced)?;
    Ok(Outcome::Written)
}

#[async_trait]
impl Store for SqlStore {
    async fn pool(&self, name: &PoolName) -> Result<Option<Pool>, StoreError> {
        let (account, pool) = pool_keys(name);
        self.database.read(move |connection| select_pool(connection, &account, &pool)).await
    }

    async fn pools(&self, account: &AccountName, after: Option<&str>, limit: u32) -> Result<Vec<Pool>, StoreError> {
        let account = account.key().into_owned();
        let after = after.unwrap_or_default().to_owned();
        let statement =
            format!("SELECT {POOL_COLUMNS} FROM pools WHERE account = ?1 AND pool > ?2 ORDER BY pool LIMIT ?3");
        self.database
            .read(move |connection| collect(connection, &statement, params![account, after, limit], read_pool))
            .await
    }

    async fn pool_names(&self, after: Option<&PoolName>, limit: u32) -> Result<Vec<PoolName>, StoreError> {
        let (account, pool) = after.map(pool_keys).unwrap_or_default();
        self.database
            .read(move |connection| {
                collect(
                    connection,
                    "SELECT account, pool FROM pools WHERE (account, pool) > (?1, ?2) ORDER BY account, pool LIMIT ?3",
                    params![account, pool, limit],
                    |row| {
                        let damaged = |error: kiln_ids::InvalidId| DatabaseError::Damaged(error.to_string());
                        let text = |at| row.get::<String>(at).map_err(sql);
                        Ok(PoolName {
                            account: AccountName::parse(&text(0)?).map_err(damaged)?,
                            pool: PoolId::parse(&text(1)?).map_err(damaged)?,
                        })
                    },
                )
            })
            .await
    }

    async fn node(&self, name: &NodeName) -> Result<Option<Node>, StoreError> {
        let (account, pool) = pool_keys(&name.pool_name());
        let node = name.node.key().into_owned();
        let statement = format!("SELECT {NODE_COLUMNS} FROM nodes WHERE account = ?1 AND pool = ?2 AND node = ?3");
        self.database
            .read(move |connection| Ok(collect(connection, &statement, params![account, pool, node], read_node)?.pop()))
            .await
    }

    async fn nodes(&self, pool: &PoolName, after: Option<&str>, limit: u32) -> Result<Vec<Node>, StoreError> {
        let (account, pool) = pool_keys(pool);
        let after = after.unwrap_or_default().to_owned();
        self.database.read(move |connection| select_nodes(connection, &account, &pool, &after, i64::from(limit))).await
    }

    async fn pool_with_nodes(&self, name: &PoolName) -> Result<Option<(Pool, Vec<Node>)>, StoreError> {
        let (account, key) = pool_keys(name);
        self.database
            .read(move |connection| {
                let Some(pool) = select_pool(connection, &account, &key)? else { return Ok(None) };
                // All of them: the number of nodes of a pool is bounded when its target is set.
                Ok(Some((pool, select_nodes(connection, &account, &key, "", i64::MAX)?)))
            })
            .await
    }

    async fn node_counts(
        &self,
        account: &AccountName,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<(PoolId, PoolCounts)>, StoreError> {
        let pools = self.pools(account, after, limit).await?;
        let (Some(first), Some(last)) = (pools.first(), pools.last()) else { return Ok(Vec::new()) };
        let account = account.key().into_owned();
        let (first, last) = (first.id.key().into_owned(), last.id.key().into_owned());
        let mut counts: Vec<(PoolId, PoolCounts)> =
            pools.into_iter().map(|pool| (pool.id, PoolCounts::default())).collect();
        let rows = self.database.read(move |connection| count_rows(connection, &account, &first, &last)).await?;
        for row in rows {
            // Pools and rows are in the order of their keys.
            if let Ok(at) = counts.binary_search_by(|(id, _)| id.key().as_ref().cmp(row.pool.as_str())) {
                row.add_to(&mut counts[at].1);
            }
        }
        Ok(counts)
    }

    async fn pool_counts(&self, name: &PoolName) -> Result<PoolCounts, StoreError> {
        let (account, pool) = pool_keys(name);
        let rows = self.database.read(move |connection| count_rows(connection, &account, &pool, &pool)).await?;
        let mut counts = PoolCounts::default();
        rows.into_iter().for_each(|row| row.add_to(&mut counts));
        Ok(counts)
    }

    async fn total_counts(&self) -> Result<StateCounts, StoreError> {
        self.database
            .read(|connection| {
                let rows = collect(connection, "SELECT state, count(*) FROM nodes GROUP BY state", [], |row| {
                    Ok((row.get(0).map_err(sql)?, row.get(1).map_err(sql)?))
                })?;
                Ok(rows.into_iter().collect())
            })
            .await
    }

    async fn answer(&self, account: &AccountName, method: &str, id: &str) -> Result<Option<Vec<u8>>, StoreError> {
        if id.is_empty() {
            return Ok(None);
        }
        let (account, method, id) = (account.key().into_owned(), method.to_owned(), id.to_owned());
        self.database.read(move |connection| Ok(requests::lookup(connection, &account, &method, &id)?)).await
    }

    async fn commit(&self, change: Change) -> Result<Outcome, StoreError> {
        let traceparent = kiln_telemetry::propagation::current_traceparent();
        self.database.write(move |connection| commit(connection, change, &traceparent)).await
    }

    async fn auto_pool(&self, name: &PoolName) -> Result<Option<AutoPool>, StoreError> {
        let name = name.clone();
        self.database.read(move |connection| select_auto_pool(connection, &name)).await
    }

    async fn forget_auto_pools(&self, before: Timestamp) -> Result<usize, StoreError> {
        self.database
            .write(move |connection| {
                connection
                    .prepare_cached("DELETE FROM auto_pools WHERE since < ?1 AND state <> 'made'")
                    .and_then(|mut statement| statement.execute([before.as_micros()]))
                    .map_err(sql)
            })
            .await
    }

    async fn forget_requests(&self, now: Timestamp) -> Result<usize, StoreError> {
        self.database.write(move |connection| Ok(requests::forget(connection, now.as_micros())?)).await
    }

    async fn serving(&self) -> Result<Option<Replica>, StoreError> {
        self.database
            .read(|connection| {
                let read =
                    |row: Row<'_>| Ok(Replica { id: row.get(0).map_err(sql)?, endpoint: row.get(1).map_err(sql)? });
                Ok(collect(connection, "SELECT replica, endpoint FROM serving", [], read)?.pop())
            })
            .await
    }

    async fn announce(&self, replica: &Replica) -> Result<(), StoreError> {
        let replica = replica.clone();
        self.database
            .write(move |connection| {
                let rows = connection
                    .prepare_cached(
                        "INSERT INTO serving VALUES (1, ?1, ?2)
                         ON CONFLICT (one) DO UPDATE SET replica = excluded.replica, endpoint = excluded.endpoint",
                    )
                    .map_err(sql)?
                    .execute(params![replica.id, replica.endpoint])
                    .map_err(sql)?;
                one(rows)
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use kiln_store::sql::OptionalExtension;
    use kiln_store::testing::TestStore;

    use super::*;

    #[tokio::test]
    async fn conforms() {
        for place in TestStore::each() {
            let store = SqlStore::open(place.config()).await.unwrap();
            crate::store::conformance::check(&store).await;
        }
    }

    #[tokio::test]
    async fn events_are_kept_with_their_change_and_records_survive_reopening() {
        for place in TestStore::each() {
            let store = SqlStore::open(place.config()).await.unwrap();
            let pool = crate::store::conformance::pool("P1");
            let name = crate::store::conformance::name("p1");
            let now = Timestamp::from_micros(5);
            let mut change = Change::new(name.clone(), now);
            change.events = vec![crate::domain::Event::pool(&pool, crate::domain::event::PoolFact::Created, "", now)];
            change.pool_write = Some(PoolWrite::Insert(pool.clone()));
            store.commit(change).await.unwrap();
            let waiting: i64 = store
                .database()
                .read::<_, StoreError, _>(|connection| {
                    connection.query_row("SELECT count(*) FROM outbox", [], |row| row.get(0)).optional().map_err(sql)
                })
                .await
                .unwrap()
                .unwrap_or_default();
            assert_eq!(waiting, 1);
            drop(store);
            let again = SqlStore::open(place.config()).await.unwrap();
            assert_eq!(again.pool(&name).await.unwrap().unwrap().id.as_str(), "P1");
        }
    }

    #[tokio::test]
    async fn every_upgrade_leads_to_the_same_schema() {
        kiln_store::testing::check_migrations(MIGRATIONS).await;
    }
}
