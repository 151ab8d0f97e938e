//! Rows of [`JobNodeRow`]s.

use kiln_ids::NodeId;
use kiln_proto::job::v1::NodeTaskInfo;
use kiln_store::sql::Row;
use prost::Message;

use super::*;

fn read(row: Row<'_>) -> Result<JobNodeRow, StoreError> {
    let info = |at: usize| -> Result<Option<NodeTaskInfo>, StoreError> {
        let bytes = row.get_ref(at)?.as_blob_or_null().map_err(damaged)?;
        bytes.map(|bytes| NodeTaskInfo::decode(bytes).map_err(damaged)).transpose()
    };
    Ok(JobNodeRow {
        pool: PoolId::parse(&row.get::<String>(0)?).map_err(damaged)?,
        node: NodeId::parse(&row.get::<String>(1)?).map_err(damaged)?,
        incarnation: row.get(2)?,
        ran: row.get(3)?,
        preparation: info(4)?,
        release: info(5)?,
        barred: row.get(6)?,
    })
}

/// Rows of a job in the order of their keys, after the pair `after`.
pub(super) fn list(
    connection: &Connection,
    job: u64,
    after: Option<&(String, String)>,
    limit: u32,
) -> Result<Vec<JobNodeRow>, StoreError> {
    let (node, pool) = after.map_or(("", ""), |(node, pool)| (node, pool));
    let mut statement = connection.prepare_cached(
        "SELECT pool_id, node_id, incarnation, ran, preparation, release, barred FROM job_nodes
         WHERE job = ?1 AND (node_key, pool_key) > (?2, ?3) ORDER BY node_key, pool_key LIMIT ?4",
    )?;
    let mut rows = statement.query(params![signed(job), node, pool, limit])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read(row)?);
    }
    Ok(found)
}

/// Adds to what is known of a job on a node. Nothing is written about jobs that
/// are gone, or that are not (and were not, when the row was made) of the pool.
pub(super) fn write(connection: &Connection, account: &AccountName, write: &JobNodeWrite) -> Result<(), StoreError> {
    let encoded = |info: &Option<NodeTaskInfo>| info.as_ref().map(Message::encode_to_vec);
    let (preparation, release) = (encoded(&write.preparation), encoded(&write.release));
    let (node, pool) = (write.node.key(), write.pool.key());
    let changed = connection
        .prepare_cached(
            "UPDATE job_nodes SET incarnation = CASE WHEN CAST(?6 AS BLOB) IS NULL THEN incarnation ELSE ?4 END,
             ran = CASE WHEN ran > ?5 THEN ran ELSE ?5 END, preparation = coalesce(?6, preparation), release = coalesce(?7, release), barred = coalesce(?9, barred)
             WHERE job = ?1 AND node_key = ?2 AND pool_key = ?3
             AND EXISTS (SELECT 1 FROM jobs WHERE id = ?1 AND account = ?8)",
        )?
        .execute(params![
            signed(write.job),
            node,
            pool,
            write.incarnation,
            write.ran,
            preparation,
            release,
            account.key(),
            write.barred,
        ])?;
    if changed > 0 {
        return Ok(());
    }
    let of_the_pool = connection
        .prepare_cached("SELECT 1 FROM jobs WHERE id = ?1 AND account = ?2 AND pool_key = ?3")?
        .exists(params![signed(write.job), account.key(), pool])?;
    if !of_the_pool {
        return Ok(());
    }
    connection
        .prepare_cached(
            "INSERT INTO job_nodes (job, node_key, pool_key, node_id, pool_id, incarnation, barred, ran, preparation,
             release) VALUES (?1, ?2, ?3, ?9, ?10, ?4, ?8, ?5, ?6, ?7)",
        )?
        .execute(params![
            signed(write.job),
            node,
            pool,
            write.incarnation,
            write.ran,
            preparation,
            release,
            write.barred,
            write.node.as_str(),
            write.pool.as_str(),
        ])?;
    Ok(())
}

/// Removes up to `limit` rows of a job; returns how many.
pub(super) fn purge(connection: &Connection, job: u64, limit: u32) -> Result<usize, StoreError> {
    let removed = connection
        .prepare_cached(
            "DELETE FROM job_nodes WHERE (job, node_key, pool_key) IN
             (SELECT job, node_key, pool_key FROM job_nodes WHERE job = ?1 LIMIT ?2)",
        )?
        .execute(params![signed(job), limit])?;
    Ok(removed)
}
