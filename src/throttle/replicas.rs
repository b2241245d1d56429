//! Replication delay and queue, on all replicas of a table if the user may query them.

use super::options::Thresholds;
use super::reason::Reason;
use super::signs::{PATIENCE, Sign, are_these, number};
use crate::clickhouse::{Connection, RequestError, TableInfo, quoting};

/// Leave out replicas that do not answer, and wait for none: this query runs every few seconds.
const OF_THOSE_THAT_ANSWER: &str = "SETTINGS skip_unavailable_shards = 1, \
                                    connect_timeout_with_failover_ms = 500, \
                                    connections_with_failover_max_tries = 1";

/// Signs to read for replicated tables.
///
/// # Errors
/// [`RequestError`] if the server cannot be reached.
pub(super) async fn signs(
    connection: &Connection,
    tables: &[TableInfo],
    thresholds: &Thresholds,
) -> Result<Vec<Sign>, RequestError> {
    if !tables.iter().any(TableInfo::is_replicated) {
        return Ok(Vec::new());
    }
    let of_replicas = match of_all_replicas(connection, tables).await {
        Ok(of_all) => of_all,
        Err(error) if error.is_passing() => return Err(error),
        // Without the right to query the others, only the connected replica is checked.
        Err(_) => None,
    };
    let of_replicas = of_replicas.unwrap_or_else(|| OfReplicas {
        table: "system.replicas".to_owned(),
        condition: are_these(tables),
        settings: "",
    });
    Ok(vec![
        Sign {
            reason: Reason::ReplicaDelay,
            question: of_replicas.most("absolute_delay"),
            threshold: thresholds.replica_delay as f64,
        },
        Sign {
            reason: Reason::ReplicaQueue,
            question: of_replicas.most("queue_size"),
            threshold: thresholds.replica_queue as f64,
        },
    ])
}

/// Where to read replication status.
struct OfReplicas {
    table: String,
    condition: String,
    settings: &'static str,
}

impl OfReplicas {
    /// The highest value of replicas that replicate. One that is read-only does not, may give the time since
    /// 1970 as its delay, and is named by the insert that it refuses.
    fn most(&self, column: &str) -> String {
        let Self {
            table,
            condition,
            settings,
        } = self;
        format!(
            "SELECT toFloat64(maxIf({column}, NOT is_readonly)) FROM {table} WHERE {condition} {settings}"
        )
    }
}

/// A table function over all replicas, if a cluster lists several for the connected server's shard.
async fn of_all_replicas(
    connection: &Connection,
    tables: &[TableInfo],
) -> Result<Option<OfReplicas>, RequestError> {
    // Prefer the cluster name that Langfuse uses.
    let clusters = "SELECT cluster FROM system.clusters WHERE (cluster, shard_num) IN \
                    (SELECT cluster, shard_num FROM system.clusters WHERE is_local) \
                    GROUP BY cluster, shard_num HAVING count() > 1 \
                    ORDER BY cluster != 'default', cluster LIMIT 1";
    let clusters = connection.rows_within::<String>(clusters, PATIENCE).await?;
    let Some(cluster) = clusters.first() else {
        return Ok(None);
    };
    // Replicas of one shard share these paths; other shards have different ones.
    let paths = format!(
        "SELECT DISTINCT zookeeper_path FROM system.replicas WHERE {} AND zookeeper_path != ''",
        are_these(tables)
    );
    let paths = connection.rows_within::<String>(&paths, PATIENCE).await?;
    if paths.is_empty() {
        return Ok(None);
    }
    let paths: Vec<String> = paths.iter().map(quoting::string).collect();
    let of_all = OfReplicas {
        table: format!(
            "clusterAllReplicas({}, system.replicas)",
            quoting::string(cluster)
        ),
        condition: format!("zookeeper_path IN ({})", paths.join(", ")),
        settings: OF_THOSE_THAT_ANSWER,
    };
    number(connection, &of_all.most("queue_size")).await?;
    Ok(Some(of_all))
}
