//! Each trace gets one root span, in the month in which its latest version lies.

use crate::support::differential::{
    Specification, ask_number, assert_equal, execute, keep_versions_apart,
};
use crate::support::{Database, SAMPLE_PARTITION, Server, Tool, move_traces};

const OBSERVATIONS: u64 = 20_000;

/// A month with every oddity, and traces that moved between days and between months.
fn month(name: &str) -> Database<'static> {
    let database = Server::shared().database(name);
    database.load_schema();
    keep_versions_apart(&database, &["traces", "observations", "events_full"]);
    database.load_sample_month(OBSERVATIONS);
    move_traces(&database);
    database
}

fn tool(database: &Database) -> Tool {
    Tool::new(database).args(["--partition", SAMPLE_PARTITION])
}

/// Guards the tests themselves.
fn assert_worth_comparing(database: &Database, root_spans: &str) {
    let rows = ask_number(database, &format!("SELECT count() FROM {root_spans}"));
    assert!(rows > 1_000, "{rows} root spans");
    for (what, condition) in [
        (
            "moved within the day",
            "trace_id LIKE '% moved' AND trace_name LIKE '% moved'",
        ),
        (
            "stayed",
            "trace_id LIKE '% moved' AND trace_name NOT LIKE '% moved'",
        ),
        ("with metadata", "notEmpty(metadata_names)"),
        ("with input", "input != ''"),
        ("bookmarked", "bookmarked"),
        ("with a version", "version != ''"),
    ] {
        let rows = ask_number(
            database,
            &format!("SELECT count() FROM {root_spans} WHERE {condition}"),
        );
        assert!(rows > 10, "{rows} root spans that are {what}");
    }
}

#[test]
fn each_trace_gets_one_root_span_beside_the_events_of_its_observations() {
    let database = month("root_spans");
    Specification::of_root_spans().fill(&database, SAMPLE_PARTITION, "events_full", "root_spans");
    assert_worth_comparing(&database, "root_spans");
    Specification::current().fill(&database, SAMPLE_PARTITION, "events_full", "expected");
    execute(&database, "INSERT INTO expected SELECT * FROM root_spans");
    for (target, compression) in [("events_full", "none"), ("events_lz4", "lz4")] {
        execute(
            &database,
            &format!("CREATE TABLE IF NOT EXISTS {target} AS events_full"),
        );
        let tool = tool(&database).args([
            "--root-spans",
            "--target-table",
            target,
            "--compression",
            compression,
            "--segment-rows",
            "2000",
        ]);
        tool.run().assert_code(0);
        assert_equal(&database, "expected", target);
        let report = tool.report();
        let expected = ask_number(&database, "SELECT count() FROM root_spans");
        assert_eq!(report["root_spans_inserted"], expected, "{report}");
        let all = ask_number(&database, "SELECT count() FROM expected");
        assert_eq!(report["events_inserted"], all - expected, "{report}");
        assert_eq!(report["segments_done"], report["segments_total"]);
    }
}

#[test]
fn an_observation_that_is_called_as_the_root_span_is_the_root_span() {
    let database = month("root_spans_and_observations");
    // One that is deleted is none: its trace gets a root span.
    execute(
        &database,
        "INSERT INTO observations SELECT * REPLACE (1 AS is_deleted, event_ts + INTERVAL 1 SECOND AS event_ts) \
         FROM observations FINAL WHERE id = concat('t-', trace_id) AND cityHash64(id) % 3 = 0",
    );
    let tool = tool(&database).arg("--root-spans");
    tool.run().assert_code(0);
    let spans = "(project_id, trace_id, span_id)";
    let doubled = format!("SELECT count() - uniqExact{spans} FROM events_full");
    assert_eq!(ask_number(&database, &doubled), 0);
    let [of_observations, of_traces] = ["IN", "NOT IN"].map(|is_in| {
        ask_number(
            &database,
            &format!(
                "SELECT count() FROM events_full WHERE span_id = concat('t-', trace_id) \
                 AND {spans} {is_in} (SELECT project_id, trace_id, id FROM observations FINAL \
                     WHERE _partition_id = '{SAMPLE_PARTITION}') \
                 AND trace_id IN (SELECT trace_id FROM observations WHERE id = concat('t-', trace_id))"
            ),
        )
    });
    assert!(of_observations > 10, "{of_observations}");
    assert!(of_traces > 5, "{of_traces}");
    assert!(tool.report()["root_spans_left_to_observations"].as_u64() > Some(10));
    let verify = Tool::new(&database)
        .arg("verify")
        .args(["--partition", SAMPLE_PARTITION, "--root-spans"])
        .env("STATE_DIR", "nowhere");
    verify.run().assert_code(0);
}

#[test]
fn root_spans_can_be_written_on_their_own() {
    let database = month("only_root_spans");
    Specification::of_root_spans().fill(&database, SAMPLE_PARTITION, "events_full", "expected");
    let tool = tool(&database).args(["--only", "root-spans"]);
    tool.run().assert_code(0);
    assert_equal(&database, "expected", "events_full");
    assert_eq!(tool.report()["observations_processed"], 0);
    // The month before has traces and no observations.
    execute(&database, "TRUNCATE TABLE events_full");
    execute(&database, "DROP TABLE expected SYNC");
    Specification::of_root_spans().fill(&database, "202405", "events_full", "expected");
    assert!(ask_number(&database, "SELECT count() FROM expected") > 10);
    let before = Tool::new(&database).args(["--partition", "202405"]);
    before
        .run()
        .assert_one_error(2, &["observations", "202405"]);
    before.arg("--root-spans").run().assert_code(0);
    assert_equal(&database, "expected", "events_full");
}

#[test]
fn without_trace_metadata_a_root_span_still_has_its_own() {
    let database = month("root_spans_without");
    Specification::of_root_spans().fill(&database, SAMPLE_PARTITION, "events_full", "expected");
    let tool = tool(&database).args(["--only", "root-spans", "--no-trace-metadata"]);
    tool.run().assert_code(0);
    assert_equal(&database, "expected", "events_full");
}

#[test]
fn a_trace_that_moved_to_another_month_has_one_root_span_without_remote_lookups_too() {
    let database = month("root_spans_no_lookup");
    Specification::of_root_spans().fill(&database, SAMPLE_PARTITION, "events_full", "expected");
    let tool = tool(&database).args(["--only", "root-spans", "--no-remote-lookup"]);
    tool.run().assert_code(0);
    assert_equal(&database, "expected", "events_full");
    let versions = ask_number(
        &database,
        "SELECT count() FROM traces FINAL WHERE _partition_id = '202406'",
    );
    let report = tool.report();
    let number = |name: &str| report[name].as_u64().unwrap();
    assert_eq!(
        number("root_spans_inserted")
            + number("traces_superseded")
            + number("root_spans_left_to_observations"),
        versions
    );
    assert!(number("traces_superseded") > 100, "{report}");
    assert!(number("root_spans_left_to_observations") > 10, "{report}");
}

#[test]
fn traces_that_are_written_while_a_run_goes_on_get_their_root_spans_too() {
    let database = month("root_spans_meanwhile");
    let tool = tool(&database).args(["--root-spans", "--segment-rows", "500"]);
    // Killed once the traces are loaded, and before the root spans are written.
    let checkpoint = tool.state_dir().join(SAMPLE_PARTITION).join("checkpoint");
    let mut run = tool.spawn();
    loop {
        assert!(run.is_running(), "the run ended before it could be killed");
        let written = "SELECT count() FROM events_full";
        if checkpoint.exists() && ask_number(&database, written) > 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    run.kill();
    run.wait();
    // Some observations have the id of a root span.
    let is_root_span = "span_id = concat('t-', trace_id) AND trace_id NOT IN \
         (SELECT trace_id FROM observations WHERE id = concat('t-', trace_id))";
    let root_spans = format!("SELECT count() FROM events_full WHERE {is_root_span}");
    assert_eq!(ask_number(&database, &root_spans), 0);
    for (name, id, version) in [
        ("new", "concat(t.id, ' new')", "t.event_ts"),
        ("newer version", "t.id", "t.event_ts + INTERVAL 1 HOUR"),
    ] {
        execute(
            &database,
            &format!(
                "INSERT INTO traces SELECT * REPLACE ({id} AS id, '{name}' AS name, \
                     concat('user of ', t.id) AS user_id, {version} AS event_ts) \
                 FROM traces AS t FINAL WHERE t._partition_id = '{SAMPLE_PARTITION}' \
                     AND t.id NOT LIKE '% moved' AND cityHash64(t.id) % 20 = 0"
            ),
        );
    }
    Specification::of_root_spans().fill(&database, SAMPLE_PARTITION, "events_full", "expected");
    tool.arg("--resume").run().assert_code(0);
    for (table, source) in [("wanted", "expected"), ("written", "events_full")] {
        execute(
            &database,
            &format!("CREATE TABLE {table} AS events_full ENGINE = Memory"),
        );
        execute(
            &database,
            &format!("INSERT INTO {table} SELECT * FROM {source} WHERE {is_root_span}"),
        );
    }
    assert_equal(&database, "wanted", "written");
    let meanwhile = "SELECT count() FROM written WHERE name IN ('new', 'newer version')";
    assert!(ask_number(&database, meanwhile) > 50);
}

#[test]
fn root_spans_of_dataset_runs_are_left_out_where_their_observations_are() {
    let database = month("root_spans_excluded");
    Specification::of_root_spans().fill(&database, SAMPLE_PARTITION, "events_full", "expected");
    execute(&database, "CREATE TABLE kept AS expected ENGINE = Memory");
    execute(
        &database,
        "INSERT INTO kept SELECT * FROM expected WHERE (project_id, trace_id) NOT IN \
             (SELECT project_id, trace_id FROM dataset_run_items_rmt FINAL)",
    );
    let left_out = ask_number(
        &database,
        "SELECT (SELECT count() FROM expected) - (SELECT count() FROM kept)",
    );
    assert!(left_out > 10, "{left_out}");
    let tool = tool(&database).args(["--only", "root-spans", "--exclude-dataset-items"]);
    tool.run().assert_code(0);
    assert_equal(&database, "kept", "events_full");
}

#[test]
fn a_run_with_root_spans_that_is_killed_ends_as_if_it_had_not_been() {
    let database = month("root_spans_killed");
    Specification::current().fill(&database, SAMPLE_PARTITION, "events_full", "expected");
    Specification::of_root_spans().add(&database, SAMPLE_PARTITION, "expected");
    let tool = tool(&database).args([
        "--root-spans",
        "--segment-rows",
        "500",
        "--batch-size",
        "500",
    ]);
    let checkpoint = tool.state_dir().join(SAMPLE_PARTITION).join("checkpoint");
    tool.run_with_kills(10, &checkpoint);
    execute(&database, "SYSTEM START MERGES events_full");
    execute(&database, "OPTIMIZE TABLE events_full FINAL");
    assert_equal(&database, "expected", "events_full");
}
