//! A backfilled month to be damaged, and what mends it.
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::differential::{ask, ask_number, execute};
use super::{Database, Options, Outcome, Running, SAMPLE_PARTITION, Server, Tool};

/// Enough for most oddities of the generator.
pub const OBSERVATIONS: u64 = 12_000;

/// What the run, verify and repair are told alike.
pub const ALIKE: [&str; 4] = [
    "--partition",
    SAMPLE_PARTITION,
    "--root-spans",
    "--experiments",
];

/// The sample month, backfilled. Nobody changes these tables.
pub fn month() -> &'static Database<'static> {
    static SERVER: OnceLock<Server> = OnceLock::new();
    static MONTH: OnceLock<Database<'static>> = OnceLock::new();
    MONTH.get_or_init(|| backfill_month(SERVER.get_or_init(server)))
}

/// A server whose tables have short granules: one row costs a granule, which in such a small month
/// would be a good part of all.
pub fn server() -> Server {
    Server::start(Options {
        config: "<merge_tree><index_granularity>128</index_granularity></merge_tree>".to_owned(),
        ..Options::default()
    })
}

/// The sample month, backfilled.
pub fn backfill_month(server: &'static Server) -> Database<'static> {
    let database = server.database("repair_month");
    database.load_schema();
    database.load_sample_month(OBSERVATIONS);
    Tool::new(&database).args(ALIKE).run().assert_code(0);
    database
}

/// A copy of the backfilled month for one test, in which nothing waits to be merged.
pub fn backfilled(name: &str) -> Database<'static> {
    copy_of(month(), name)
}

/// See [`backfilled`].
pub fn copy_of(source: &Database<'static>, name: &str) -> Database<'static> {
    let database = source.server.database(name);
    database.load_schema();
    for table in ["traces", "observations", "dataset_run_items_rmt"] {
        execute(&database, &format!("DROP TABLE {table}"));
        execute(
            &database,
            &format!("CREATE TABLE {table} CLONE AS `{}`.{table}", source.name),
        );
    }
    execute(
        &database,
        &format!(
            "INSERT INTO events_full SELECT * FROM `{}`.events_full FINAL",
            source.name
        ),
    );
    merge(&database);
    database
}

pub fn merge(database: &Database) {
    for table in ["events_full", "events_core"] {
        execute(database, &format!("OPTIMIZE TABLE {table} FINAL"));
    }
}

/// Lets merges of both tables go on, or not: `START` or `STOP`.
pub fn merges(database: &Database, what: &str) {
    for table in BOTH {
        execute(database, &format!("SYSTEM {what} MERGES {table}"));
    }
}

/// Keeps rows that were written twice apart, also after a restart of the server, unless it is told
/// to merge them.
pub fn never_merge_by_itself(database: &Database) {
    for table in BOTH {
        execute(
            database,
            &format!(
                "ALTER TABLE {table} MODIFY SETTING max_bytes_to_merge_at_max_space_in_pool = 1, \
                 max_bytes_to_merge_at_min_space_in_pool = 1"
            ),
        );
    }
}

/// Waits until `events_full` has so many rows, while the program runs.
#[track_caller]
pub fn wait_for_rows(running: &mut Running, database: &Database, rows: u64) {
    let started = Instant::now();
    while ask_number(database, "SELECT count() FROM events_full") < rows {
        assert!(started.elapsed() < Duration::from_secs(60));
        assert!(running.is_running(), "it ended before it was interrupted");
        thread::sleep(Duration::from_millis(5));
    }
}

pub fn repair(database: &Database) -> Tool {
    Tool::new(database).arg("repair").args(ALIKE)
}

#[track_caller]
pub fn assert_equal(database: &Database) {
    let tool = Tool::new(database)
        .arg("verify")
        .args(ALIKE)
        .env("STATE_DIR", "nowhere");
    tool.run().assert_code(0);
    assert_eq!(tool.report()["equal"], true);
}

/// Mends, and panics unless so many rows were written; gives the report.
#[track_caller]
pub fn assert_mended(tool: &Tool, rows: u64) -> Value {
    let outcome = tool.run();
    outcome.assert_code(0);
    let report = tool.report();
    assert_eq!(report["rows_written"], rows, "{report:#}");
    assert_eq!(report["complete"], true, "{report:#}");
    report
}

/// Panics unless v4, which reads without FINAL, counts each event once.
#[track_caller]
pub fn assert_each_once(database: &Database) {
    for table in ["events_full", "events_core"] {
        let numbers = ask(
            database,
            &format!("SELECT count(), uniqExact(project_id, trace_id, span_id) FROM {table}"),
        );
        let (rows, spans) = numbers.split_once('\t').unwrap();
        assert_eq!(rows, spans, "{table}");
    }
}

/// A condition that is true for some events.
pub fn some_events(database: &Database, condition: &str, number: u64) -> String {
    let keys = ask(
        database,
        &format!(
            "SELECT arrayStringConcat(groupArray(toString(h)), ', ') FROM \
             (SELECT cityHash64(project_id, trace_id, span_id) AS h FROM events_full FINAL \
             WHERE {condition} GROUP BY h HAVING count() = 1 ORDER BY h LIMIT {number})"
        ),
    );
    assert_eq!(keys.split(", ").count() as u64, number, "{condition}");
    format!("cityHash64(project_id, trace_id, span_id) IN ({keys})")
}

pub fn delete(database: &Database, tables: &[&str], condition: &str) {
    for table in tables {
        execute(database, &format!("DELETE FROM {table} WHERE {condition}"));
    }
}

/// Writes some events once more, with other values in some columns, in place of the right ones.
pub fn change(database: &Database, table: &str, changes: &str, condition: &str) {
    execute(
        database,
        &format!(
            "INSERT INTO {table} SELECT * REPLACE ({changes}) \
             FROM (SELECT * FROM {table} FINAL WHERE {condition})"
        ),
    );
    merge(database);
}

pub const BOTH: [&str; 2] = ["events_full", "events_core"];
pub const OF_OBSERVATION: &str = "span_id != concat('t-', trace_id)";
pub const OF_TRACE: &str = "span_id = concat('t-', trace_id)";

/// What the server was asked to read of the rows of a month.
#[derive(Debug, Clone, Copy)]
pub struct Reads {
    /// Rows of all tables, by all statements.
    pub rows: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// Runs the program, and says what the server read for it.
pub fn run_and_count(database: &Database, tool: &Tool) -> (Outcome, Reads) {
    let since = ask(database, "SELECT toString(now64(6))");
    let outcome = tool.run();
    execute(database, "SYSTEM FLUSH LOGS query_log");
    let numbers = ask(
        database,
        &format!(
            "SELECT sum(read_rows), sum(read_bytes) FROM system.query_log \
             WHERE type = 'QueryFinish' AND http_user_agent LIKE '%events-backfill%' \
             AND has(databases, currentDatabase()) AND query_start_time_microseconds >= '{since}'"
        ),
    );
    let (rows, bytes) = numbers.split_once('\t').expect("two numbers");
    let reads = Reads {
        rows: rows.parse().unwrap(),
        bytes: bytes.parse().unwrap(),
    };
    (outcome, reads)
}
