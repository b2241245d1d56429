//! Signs of server load that a user with ordinary rights can read.

use std::time::Duration;

use super::options::Thresholds;
use super::reason::Reason;
use crate::clickhouse::{Connection, RequestError, TableInfo, quoting};

/// How long the server may take to answer. A server that needs longer is overloaded.
pub(super) const PATIENCE: Duration = Duration::from_secs(4);

/// ClickHouse's default.
const PARTS_TO_DELAY_INSERT: f64 = 1000.0;
/// One less than ClickHouse's default number of merge threads.
const MERGES: f64 = 31.0;

/// Selects queries that are not ours.
const OF_OTHERS: &str = "is_initial_query AND NOT startsWith(http_user_agent, 'events-backfill/')";

/// A load figure to read repeatedly, with its threshold.
#[derive(Debug)]
pub(super) struct Sign {
    pub(super) reason: Reason,
    pub(super) question: String,
    pub(super) threshold: f64,
}

/// One reading of a sign.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Reading {
    pub(super) reason: Reason,
    pub(super) value: f64,
    pub(super) threshold: f64,
}

impl Sign {
    /// Reads the current value.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
    pub(super) async fn read(&self, connection: &Connection) -> Result<Reading, RequestError> {
        Ok(Reading {
            reason: self.reason,
            value: number(connection, &self.question).await?,
            threshold: self.threshold,
        })
    }
}

impl Sign {
    /// A reading just above the threshold, for a server too slow to answer.
    pub(super) fn too_much(&self) -> Reading {
        Reading {
            reason: self.reason,
            value: self.threshold * 1.01 + 0.01,
            threshold: self.threshold,
        }
    }
}

impl Reading {
    /// The value as a multiple of the threshold.
    pub(super) fn ratio(&self) -> f64 {
        self.value / self.threshold.max(f64::MIN_POSITIVE)
    }

    /// The reading and its threshold, as shown to people.
    pub(super) fn in_words(&self) -> String {
        let (value, threshold, flag) = (self.value, self.threshold, self.reason.flag());
        let value = match self.reason {
            Reason::InsertTime => format!("{value:.1}"),
            _ => format!("{value:.0}"),
        };
        format!("{}: {value}, above {threshold:.0} ({flag})", self.reason)
    }
}

/// What can be read from a server.
#[derive(Debug, Default)]
pub(super) struct Signs {
    pub(super) to_read: Vec<Sign>,
    /// What cannot be read, and why.
    pub(super) refused: Vec<(Reason, String)>,
}

impl Signs {
    fn add(
        &mut self,
        reason: Reason,
        sign: Result<Sign, RequestError>,
    ) -> Result<(), RequestError> {
        match sign {
            Ok(sign) => self.to_read.push(sign),
            Err(error) if error.is_passing() => return Err(error),
            Err(error) => self.refused.push((reason, error.to_string())),
        }
        Ok(())
    }
}

/// The signs to read while writing to `tables`. Queries the server for thresholds that depend on
/// it.
///
/// # Errors
/// [`RequestError`] if the server cannot be reached.
pub(super) async fn signs(
    connection: &Connection,
    tables: &[TableInfo],
    server_memory: Option<u64>,
    thresholds: &Thresholds,
) -> Result<Signs, RequestError> {
    let mut signs = Signs::default();
    signs.add(Reason::Parts, parts(connection, tables, thresholds).await)?;
    signs.add(Reason::Merges, merges(connection, thresholds).await)?;
    signs.add(Reason::Queries, queries(connection, thresholds).await)?;
    signs.to_read.push(Sign {
        reason: Reason::SlowQueries,
        question: format!(
            "SELECT toFloat64(count()) FROM system.processes WHERE {OF_OTHERS} AND elapsed >= 10"
        ),
        threshold: thresholds.slow_queries as f64,
    });
    match server_memory.filter(|&bytes| bytes > 0) {
        Some(bytes) => signs.to_read.push(Sign {
            reason: Reason::ServerMemory,
            question: format!(
                "SELECT toFloat64(sum(value)) * 100 / {bytes} FROM system.metrics \
                 WHERE metric = 'MemoryTracking'"
            ),
            threshold: thresholds.server_memory as f64,
        }),
        None => {
            let why = "the server does not report its memory limit".to_owned();
            signs.refused.push((Reason::ServerMemory, why));
        }
    }
    Ok(signs)
}

async fn parts(
    connection: &Connection,
    tables: &[TableInfo],
    thresholds: &Thresholds,
) -> Result<Sign, RequestError> {
    let threshold = match thresholds.parts {
        Some(parts) => parts as f64,
        None => {
            let of_server = number(
                connection,
                "SELECT toFloat64(min(toUInt64(value))) FROM system.merge_tree_settings \
                 WHERE name IN ('parts_to_delay_insert', 'parts_to_throw_insert')",
            );
            half_of_limit(or_default(of_server.await, PARTS_TO_DELAY_INSERT)?, tables)
        }
    };
    Ok(Sign {
        reason: Reason::Parts,
        question: format!(
            "SELECT toFloat64(max(parts)) FROM (SELECT count() AS parts FROM system.parts \
             WHERE active AND {} GROUP BY database, table, partition_id)",
            are_these(tables)
        ),
        threshold,
    })
}

/// The server's value, or ClickHouse's default if the user may not read it.
fn or_default(of_server: Result<f64, RequestError>, default: f64) -> Result<f64, RequestError> {
    match of_server {
        Err(error) if !error.is_passing() => Ok(default),
        of_server => of_server,
    }
}

/// Half the number of parts at which the server delays or rejects inserts.
fn half_of_limit(of_server: f64, tables: &[TableInfo]) -> f64 {
    let of_tables = tables.iter().flat_map(|table| {
        let names = ["parts_to_delay_insert", "parts_to_throw_insert"];
        names.map(|name| setting_of(&table.engine_full, name))
    });
    let limit = of_tables.flatten().fold(of_server, f64::min);
    (limit / 2.0).floor().max(1.0)
}

/// A table setting, parsed from `engine_full`.
fn setting_of(engine_full: &str, name: &str) -> Option<f64> {
    let (_, behind) = engine_full.rsplit_once(&format!("{name} = "))?;
    let end = behind.find(|character: char| !character.is_ascii_digit());
    behind[..end.unwrap_or(behind.len())].parse().ok()
}

async fn merges(connection: &Connection, thresholds: &Thresholds) -> Result<Sign, RequestError> {
    let threshold = match thresholds.merges {
        Some(merges) => merges as f64,
        None => {
            let of_server = number(
                connection,
                "SELECT greatest(1, maxIf(toFloat64OrZero(value), name = 'background_pool_size') \
                 * maxIf(toFloat64OrZero(value), name = \
                 'background_merges_mutations_concurrency_ratio') - 1) FROM \
                 system.server_settings",
            );
            or_default(of_server.await, MERGES)?
        }
    };
    Ok(Sign {
        reason: Reason::Merges,
        question: "SELECT toFloat64(count()) FROM system.merges".to_owned(),
        threshold,
    })
}

async fn queries(connection: &Connection, thresholds: &Thresholds) -> Result<Sign, RequestError> {
    let threshold = match thresholds.queries {
        Some(queries) => queries as f64,
        None => {
            let cores = number(connection, "SELECT toFloat64(getSetting('max_threads'))");
            (cores.await? * 4.0).max(8.0)
        }
    };
    Ok(Sign {
        reason: Reason::Queries,
        question: format!("SELECT toFloat64(count()) FROM system.processes WHERE {OF_OTHERS}"),
        threshold,
    })
}

/// A condition on `database` and `table`.
pub(super) fn are_these(tables: &[TableInfo]) -> String {
    let names = tables.iter().map(|table| {
        let (database, name) = (&table.database, &table.name);
        format!("({}, {})", quoting::string(database), quoting::string(name))
    });
    format!(
        "(database, table) IN ({})",
        names.collect::<Vec<_>>().join(", ")
    )
}

pub(super) async fn number(connection: &Connection, question: &str) -> Result<f64, RequestError> {
    let rows = connection.rows_within::<f64>(question, PATIENCE).await?;
    Ok(rows.first().copied().unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(engine_full: &str) -> TableInfo {
        TableInfo {
            database: "default".to_owned(),
            name: "events_full".to_owned(),
            uuid: String::new(),
            engine: "ReplacingMergeTree".to_owned(),
            partition_key: String::new(),
            primary_key: String::new(),
            has_views: false,
            keeps_block_numbers: false,
            engine_full: engine_full.to_owned(),
            columns: Vec::new(),
        }
    }

    #[test]
    fn half_the_parts_from_which_inserts_are_delayed_or_refused_are_enough() {
        let plain =
            table("ReplacingMergeTree(event_ts) ORDER BY id SETTINGS index_granularity = 8192");
        assert_eq!(half_of_limit(1000.0, std::slice::from_ref(&plain)), 500.0);
        let strict = table("MergeTree ORDER BY id SETTINGS parts_to_throw_insert = 12, x = 7");
        assert_eq!(half_of_limit(1000.0, &[plain, strict]), 6.0);
        let least = table("MergeTree ORDER BY id SETTINGS parts_to_delay_insert = 1");
        assert_eq!(half_of_limit(1000.0, &[least]), 1.0);
    }

    #[test]
    fn what_is_too_much_is_said_with_the_flag_that_sets_it() {
        for reason in Reason::ALL {
            let reading = Reading {
                reason,
                value: 612.4,
                threshold: 500.0,
            };
            let words = reading.in_words();
            assert!(
                words.contains(reason.flag()) && words.contains("500"),
                "{words}"
            );
        }
    }
}
