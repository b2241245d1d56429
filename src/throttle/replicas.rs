//! How far the replicas of a table are behind: all of them, where the user may ask.

use super::options::Thresholds;
use super::reason::Reason;
use super::signs::{PATIENCE, Sign, are_these, number};
use crate::clickhouse::{Connection, RequestError, TableInfo, quoting};

/// A replica that does not answer is left out, and none is waited for: it is asked every few seconds.
const OF_THOSE_THAT_ANSWER: &str = "SETTINGS skip_unavailable_shards = 1, \
     connect_timeout_with_failover_ms = 500, connections_with_failover_max_tries = 1";

/// What is read of tables that are replicated.
///
/// # Errors
/// [`RequestError`] where the server does not answer at the moment.
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
        // Whoever may not ask the others is told of the one that is asked.
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

/// Where it stands how far replicas are.
struct OfReplicas {
    table: String,
    condition: String,
    settings: &'static str,
}

impl OfReplicas {
    fn most(&self, column: &str) -> String {
        let Self {
            table,
            condition,
            settings,
        } = self;
        format!("SELECT toFloat64(max({column})) FROM {table} WHERE {condition} {settings}")
    }
}

/// All replicas of the tables, if the server knows a cluster in which its own shard has several.
async fn of_all_replicas(
    connection: &Connection,
    tables: &[TableInfo],
) -> Result<Option<OfReplicas>, RequestError> {
    // Langfuse's own name first.
    let clusters = "SELECT cluster FROM system.clusters WHERE (cluster, shard_num) IN \
                    (SELECT cluster, shard_num FROM system.clusters WHERE is_local) \
                    GROUP BY cluster, shard_num HAVING count() > 1 \
                    ORDER BY cluster != 'default', cluster LIMIT 1";
    let clusters = connection.rows_within::<String>(clusters, PATIENCE).await?;
    let Some(cluster) = clusters.first() else {
        return Ok(None);
    };
    // What tables of one shard have in common, and those of another have not.
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
