//! `--engine clickhouse` under faults: each event once, whatever happens to the program, to the server
//! or to the memory of a statement.

use std::thread;
use std::time::{Duration, Instant};

use crate::support::differential::{
    Specification, add_wide_rows, ask, ask_number, assert_equal, execute, keep_versions_apart,
};
use crate::support::proxy::{Action, FOREVER, Fault, Place, Proxy};
use crate::support::{Database, Options, SAMPLE_PARTITION, Server, Tool, repository_file};

/// Enough for several segments.
const OBSERVATIONS: u64 = 60_000;

/// How often the program or the server is killed.
const KILLS: u32 = 6;

fn month<'s>(server: &'s Server, name: &str) -> Database<'s> {
    let database = server.sample_month(name, OBSERVATIONS);
    // Few parts, so that segments may be short.
    execute(&database, "OPTIMIZE TABLE observations FINAL");
    Specification::current().fill(&database, SAMPLE_PARTITION, "events_full", "expected");
    database
}

fn tool(database: &Database) -> Tool {
    Tool::new(database).args([
        "--partition",
        SAMPLE_PARTITION,
        "--engine",
        "clickhouse",
        "--segment-rows",
        "10000",
        "--concurrency",
        "2",
    ])
}

/// Each event once, for readers that do not say `FINAL`, in both tables.
#[track_caller]
fn assert_each_once(database: &Database) {
    assert_equal(database, "expected", "events_full");
    let of_core = "SELECT count() = uniqExact(project_id, trace_id, span_id, start_time) AND \
                   count() = (SELECT count() FROM events_full) FROM events_core";
    assert_eq!(ask(database, of_core), "1");
}

fn resumed(tool: Tool) -> Tool {
    let checkpoint = tool.state_dir().join(SAMPLE_PARTITION).join("checkpoint");
    let tool = tool.without_arg("--resume");
    match checkpoint.exists() {
        true => tool.arg("--resume"),
        false => tool,
    }
}

#[test]
fn a_program_killed_while_the_server_joins_leaves_each_event_once() {
    let server = Server::shared();
    let database = month(server, "engine_killed");
    keep_versions_apart(&database, &["events_full", "events_core"]);
    let tool = tool(&database);
    let checkpoint = tool.state_dir().join(SAMPLE_PARTITION).join("checkpoint");
    tool.run_with_kills(KILLS, &checkpoint);
    assert_each_once(&database);
}

#[test]
fn a_server_killed_while_it_joins_leaves_each_event_once() {
    let server = Server::start(Options::default());
    let database = month(&server, "engine_server_killed");
    // A restart would forget that merges are stopped.
    for table in ["events_full", "events_core"] {
        execute(
            &database,
            &format!(
                "ALTER TABLE {table} MODIFY SETTING max_bytes_to_merge_at_max_space_in_pool = 1"
            ),
        );
    }
    let mut random = fastrand::Rng::with_seed(fastrand::u64(..));
    let mut tool = tool(&database).env("MAX_RETRIES", "3");
    let mut running = tool.spawn();
    for _ in 0..KILLS {
        thread::sleep(Duration::from_millis(random.u64(200..2_000)));
        if !running.is_running() {
            break;
        }
        server.kill();
        thread::sleep(Duration::from_millis(random.u64(0..1_000)));
        server.restart();
        if !running.is_running() {
            running.wait();
            tool = resumed(tool);
            running = tool.spawn();
        }
    }
    let mut outcome = running.wait();
    for _ in 0..5 {
        if outcome.code == Some(0) {
            break;
        }
        tool = resumed(tool);
        outcome = tool.run();
    }
    outcome.assert_code(0);
    assert_each_once(&database);
}

/// Observations that a new version of changes, and others that are new, while a statement waits.
const ARRIVES: [&str; 2] = [
    "INSERT INTO observations SELECT * REPLACE (now64(3) AS event_ts, 'changed' AS name) \
     FROM observations FINAL WHERE cityHash64(id) % 10 = 0 AND id IN once",
    "INSERT INTO observations SELECT * REPLACE (now64(3) AS event_ts, observations.id || '-new' AS id) \
     FROM observations FINAL WHERE cityHash64(observations.id) % 10 = 1 \
     AND observations.id IN once",
];

/// Runs the tool with its first statement held up until observations have arrived whose keys it has
/// read before.
fn run_while_observations_arrive<const N: usize>(
    database: &Database,
    arguments: [&str; N],
) -> Tool {
    keep_versions_apart(database, &["events_full", "events_core"]);
    // Those with one row each: of the others it is not said which is the latest.
    execute(
        database,
        "CREATE TABLE once ENGINE = Set AS SELECT id FROM observations GROUP BY id \
         HAVING count() = 1",
    );
    let proxy = Proxy::start(database.server.http_port());
    let hold = proxy.arm(Fault::once(
        "LEFT ANY JOIN",
        Place::RequestByte(0),
        Action::Stall(FOREVER),
    ));
    let tool = tool(database)
        .env("CLICKHOUSE_URL", proxy.url())
        .args(arguments);
    let mut running = tool.spawn();
    let began = Instant::now();
    while hold.count() == 0 {
        assert!(running.is_running() && began.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(10));
    }
    for statement in ARRIVES {
        execute(database, statement);
    }
    hold.lift();
    running.wait().assert_code(0);
    tool
}

#[test]
fn what_arrives_between_the_keys_and_the_statement_is_one_event() {
    let database = month(Server::shared(), "engine_arrives");
    run_while_observations_arrive(&database, []);
    execute(&database, "DROP TABLE expected");
    Specification::current().fill(&database, SAMPLE_PARTITION, "events_full", "expected");
    for arrived in ["endsWith(span_id, '-new')", "name = 'changed'"] {
        let rows = format!("SELECT countIf({arrived}) FROM expected");
        let rows = ask_number(&database, &rows);
        assert!(rows > 1_000, "{arrived}: {rows}");
    }
    assert_each_once(&database);
}

#[test]
fn what_arrives_between_the_keys_and_the_statement_is_left_to_langfuse_where_it_writes() {
    let database = month(Server::shared(), "engine_arrives_live");
    let arguments = ["--until", "2024-07-15 00:00:00"];
    let tool = run_while_observations_arrive(&database, arguments);
    execute(
        &database,
        "ALTER TABLE expected DELETE WHERE cityHash64(span_id) % 10 = 0 AND span_id IN once \
         SETTINGS mutations_sync = 2",
    );
    assert_each_once(&database);
    let left = tool.report()["left_to_live_path"].as_u64().unwrap();
    assert!(left > 2_000, "{left}");
}

/// Rows of 20 KB each.
const WIDE_ROWS: u64 = 7_500;

#[test]
fn a_segment_that_a_statement_has_no_memory_for_is_divided() {
    let server = Server::start(Options {
        profile: "<max_memory_usage>250000000</max_memory_usage>".to_owned(),
        ..Options::default()
    });
    let database = server.database("engine_memory");
    database.load_schema();
    database.execute_file(&repository_file("bench-data/older-events.sql"), &[]);
    execute(&database, "CREATE TABLE written AS events");
    keep_versions_apart(&database, &["written"]);
    add_wide_rows(&database, WIDE_ROWS);
    let tool = Tool::new(&database)
        .args(["--partition", SAMPLE_PARTITION, "--target-table", "written"])
        .args(["--engine", "clickhouse", "--concurrency", "1"])
        .args(["--part-bytes", "256MiB"]);
    let outcome = tool.run();
    outcome.assert_code(0).assert_stderr_contains("error 241");
    let content = |id: &str, table: &str| {
        ask(
            &database,
            &format!(
                "SELECT count(), sum(cityHash64({id}, assumeNotNull(input))) FROM {table} \
                 SETTINGS max_memory_usage = 0"
            ),
        )
    };
    assert_eq!(content("span_id", "written"), content("id", "observations"));
    assert_eq!(tool.report()["events_inserted"], WIDE_ROWS);
    let statements = format!(
        "SELECT count() FROM system.query_log WHERE type = 'QueryFinish' AND \
         query_kind = 'Insert' AND query LIKE '%`{}`.`written`%SELECT%FINAL%PREWHERE%'",
        database.name
    );
    execute(&database, "SYSTEM FLUSH LOGS query_log");
    assert!(ask_number(&database, &statements) > 1, "{}", outcome.stderr);
}
