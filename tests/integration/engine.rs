//! `--engine clickhouse` writes what the embedded engine writes, byte for byte.

use crate::support::differential::{
    Specification, ask_number, assert_equal, execute, keep_versions_apart,
};
use crate::support::{Database, SAMPLE_PARTITION, Server, Tool, repository_file};

/// From this number on, the generator includes every oddity.
const OBSERVATIONS: u64 = 20_000;

fn month(name: &str) -> Database<'static> {
    let database = Server::shared().database(name);
    database.load_schema();
    keep_versions_apart(&database, &["traces", "observations", "events_full"]);
    database.load_sample_month(OBSERVATIONS);
    database
}

fn tool(database: &Database, target: &str) -> Tool {
    Tool::new(database).args(["--partition", SAMPLE_PARTITION, "--target-table", target])
}

/// An empty table like `events_full`, without the view.
fn new_target(database: &Database, name: &str) {
    execute(database, &format!("CREATE TABLE {name} AS events_full"));
    keep_versions_apart(database, &[name]);
}

/// Rows that statements of the server's own engine wrote into a table.
fn joined_by_the_server(database: &Database, table: &str) -> u64 {
    execute(database, "SYSTEM FLUSH LOGS query_log");
    ask_number(
        database,
        &format!(
            "SELECT sum(written_rows) FROM system.query_log WHERE type = 'QueryFinish' \
             AND query_kind = 'Insert' AND query LIKE '%`{}`.`{table}`%SELECT%FINAL%'",
            database.name
        ),
    )
}

#[test]
fn both_engines_write_the_same_events() {
    let database = month("both_engines");
    for target in ["by_program", "by_server"] {
        new_target(&database, target);
    }
    let embedded = tool(&database, "by_program")
        .with_defaults()
        .args(["--engine", "embedded"]);
    embedded.run().assert_code(0);
    let pushed = tool(&database, "by_server").with_defaults().args([
        "--engine",
        "clickhouse",
        "--segment-rows",
        "4000",
    ]);
    pushed.run().assert_code(0);
    assert_equal(&database, "by_program", "by_server");
    let [theirs, ours] = [embedded.report(), pushed.report()];
    for count in [
        "events_inserted",
        "root_spans_inserted",
        "observations_processed",
        "observations_without_trace",
        "observations_superseded",
        "spans_in_experiments",
        "traces_superseded",
    ] {
        assert_eq!(ours[count], theirs[count], "{count}\n{ours}\n{theirs}");
    }
    assert!(ours["spans_in_experiments"].as_u64().unwrap() > 100);
    // All but rows that the join cannot do.
    let rows = ask_number(&database, "SELECT count() FROM by_server");
    let joined = joined_by_the_server(&database, "by_server");
    assert!(joined > rows / 2, "{joined} of {rows}");
    assert_eq!(joined_by_the_server(&database, "by_program"), 0);
}

#[test]
fn versions_that_differ_in_type_alone_are_one_event() {
    let database = month("engine_versions");
    // The sort key keeps both: of some the later one has another type, of others it deletes them.
    execute(
        &database,
        "INSERT INTO observations SELECT * REPLACE ('EVENT' AS type, \
             addSeconds(observations.event_ts, 1) AS event_ts, cityHash64(id) % 3 = 0 AS is_deleted) \
         FROM observations FINAL WHERE observations.type = 'SPAN' \
         AND cityHash64(id) % 5 = 0",
    );
    Specification::current().fill(&database, SAMPLE_PARTITION, "events_full", "expected");
    let tool = tool(&database, "events_full").args(["--engine", "clickhouse"]);
    tool.run().assert_code(0);
    assert_equal(&database, "expected", "events_full");
    let report = tool.report();
    assert!(
        report["observations_superseded"].as_u64().unwrap() > 20,
        "{report}"
    );
    assert_eq!(
        report["events_inserted"],
        ask_number(&database, "SELECT count() FROM expected")
    );
}

#[test]
fn a_second_run_adds_nothing() {
    let database = month("engine_again");
    Specification::current().fill(&database, SAMPLE_PARTITION, "events_full", "expected");
    let tool = tool(&database, "events_full").args(["--engine", "clickhouse"]);
    tool.run().assert_code(0);
    assert_equal(&database, "expected", "events_full");
    let rows = ask_number(&database, "SELECT count() FROM expected");
    // A few rows are lost; the others are left as they are.
    execute(&database, "TRUNCATE TABLE events_full");
    execute(
        &database,
        "INSERT INTO events_full SELECT * FROM expected WHERE cityHash64(span_id) % 7 > 0",
    );
    let left = ask_number(&database, "SELECT count() FROM events_full");
    let again = Tool::new(&database)
        .args(["--partition", SAMPLE_PARTITION])
        .args(["--engine", "clickhouse"]);
    again.run().assert_code(0);
    assert_equal(&database, "expected", "events_full");
    let report = again.report();
    assert_eq!(report["already_there"], left, "{report}");
    assert_eq!(report["events_inserted"], rows - left, "{report}");
}

/// Statements of the server's own engine that read keys of observations, with a text in them.
fn reads_of_keys(database: &Database, text: &str) -> u64 {
    execute(database, "SYSTEM FLUSH LOGS query_log");
    ask_number(
        database,
        &format!(
            "SELECT count() FROM system.query_log WHERE type = 'QueryFinish' \
             AND query_kind = 'Select' AND query LIKE '%helper_day%`{}`.`observations`%' \
             AND query NOT LIKE '%PREWHERE%' AND query LIKE '%{text}%'",
            database.name
        ),
    )
}

#[test]
fn in_a_month_that_stands_still_the_keys_of_each_segment_are_read_once() {
    let database = Server::shared().database("keys_once");
    database.load_schema();
    database.load_sample_month(OBSERVATIONS / 2);
    execute(&database, "OPTIMIZE TABLE observations FINAL");
    new_target(&database, "written");
    let tool = tool(&database, "written").args([
        "--engine",
        "clickhouse",
        "--segment-rows",
        "2000",
        "--no-root-spans",
    ]);
    tool.run().assert_code(0);
    let segments = reads_of_keys(&database, "helper_is_deleted");
    assert!(segments > 0);
    assert_eq!(reads_of_keys(&database, " FINAL "), 0);
    assert!(joined_by_the_server(&database, "written") > OBSERVATIONS / 3);
}

#[test]
fn a_dry_run_of_the_servers_engine_writes_nothing() {
    let database = month("engine_dry");
    let tool = tool(&database, "events_full").args(["--engine", "clickhouse", "--dry-run"]);
    tool.run().assert_code(0);
    assert_eq!(ask_number(&database, "SELECT count() FROM events_full"), 0);
    let report = tool.report();
    assert_eq!(report["events_inserted"], 0, "{report}");
    let there_are = report["observations_processed"].as_u64().unwrap();
    assert!(there_are > OBSERVATIONS * 9 / 10, "{report}");
}

#[test]
fn what_the_servers_engine_cannot_do_is_refused() {
    let database = month("engine_refused");
    let refused = |arguments: &[&str], words: &[&str]| {
        let tool = tool(&database, "events_full").args(arguments.iter().copied());
        tool.run().assert_one_error(2, words);
    };
    refused(&["--engine", "spark"], &["--engine", "spark", "clickhouse"]);
    refused(
        &["--engine", "clickhouse", "--no-remote-lookup"],
        &["--no-remote-lookup"],
    );
    refused(
        &["--engine", "clickhouse", "--max-bytes-per-second", "4MiB"],
        &["--max-bytes-per-second", "--max-rows-per-second"],
    );
    refused(
        &["--engine", "clickhouse", "--segment-rows", "2000000"],
        &["--segment-rows", "1000000"],
    );
    let older = Server::shared().database("engine_json");
    older.load_schema();
    for table in ["events_core_mv", "events_core", "events_full"] {
        execute(&older, &format!("DROP TABLE {table}"));
    }
    older.execute_file(&repository_file("bench-data/older-events.sql"), &[]);
    execute(&older, "ALTER TABLE events MODIFY COLUMN metadata JSON");
    older.load_sample_month(1_000);
    Tool::new(&older)
        .args(["--partition", SAMPLE_PARTITION, "--engine", "clickhouse"])
        .run()
        .assert_one_error(2, &["metadata", "--engine embedded"]);
}

#[test]
fn a_run_is_not_continued_with_another_engine() {
    let database = month("engine_changed");
    let tool = tool(&database, "events_full").args(["--max-rows-per-second", "2000"]);
    let tool = tool.env("ENGINE", "embedded");
    let mut running = tool.spawn();
    crate::support::differential::wait_for_event(&mut running, &database);
    running.terminate();
    running.wait().assert_code(143);
    let tool = tool.args(["--engine", "clickhouse", "--resume"]);
    tool.run()
        .assert_one_error(2, &["--engine", "embedded", "clickhouse"]);
}
