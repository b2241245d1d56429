//! `verify` says "equal" of a month that is, and finds whatever is not.

use std::fs;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::differential::{ask, ask_number, execute};
use crate::support::proxy::{Action, FOREVER, Fault, Place, Proxy};
use crate::support::{
    Database, Options, Outcome, READER, SAMPLE_PARTITION, Server, Tool, repository_file,
    small_month,
};
use serde_json::Value;

/// From this number on, the generator includes every oddity.
const OBSERVATIONS: u64 = 20_000;

/// What tells one event from another.
const KEY: &str = "project_id, trace_id, span_id, start_time";

/// The program, ready to verify the sample month.
fn verify(database: &Database) -> Tool {
    Tool::new(database)
        .args(["verify", "--partition", SAMPLE_PARTITION])
        // It has no state, and so no flag for its directory.
        .env("STATE_DIR", "nowhere")
}

fn verify_table(database: &Database, target: &str) -> Tool {
    verify(database).args(["--target-table", target])
}

/// The program, ready to write the sample month.
fn backfill(database: &Database) -> Tool {
    Tool::new(database).args(["--partition", SAMPLE_PARTITION])
}

/// Panics unless both sides are found equal; gives the report.
#[track_caller]
fn assert_equal(tool: &Tool) -> Value {
    let outcome = tool.run();
    outcome.assert_code(0);
    let report = tool.report();
    assert_eq!(report["equal"], true, "{report}");
    assert_eq!(report["complete"], true, "{report}");
    assert_eq!(report["pieces_compared"], report["pieces"], "{report}");
    assert_eq!(report["pieces_different"], 0, "{report}");
    assert_eq!(wrong(&report), 0, "{report}");
    assert!(outcome.stdout.contains("equal"), "{}", outcome.stdout);
    report
}

/// Panics unless exactly these numbers of rows are found to be wrong; gives the report.
#[track_caller]
fn assert_wrong(tool: &Tool, expected: &[(&str, u64)]) -> (Outcome, Value) {
    let outcome = tool.run();
    let total: u64 = expected.iter().map(|(_, count)| count).sum();
    let report = tool.report();
    outcome.assert_one_error(1, &[&format!("{total} row"), SAMPLE_PARTITION]);
    for (kind, count) in expected {
        assert_eq!(report[kind], *count, "{kind}: {report}");
        let told = match *kind {
            "superseded" => "superseded",
            "different_experiments" => "with wrong experiment columns",
            "doubled_in_full" => "unmerged duplicates in events_full",
            "doubled_in_core" => "unmerged duplicates in events_core",
            "missing_in_core" => "missing in events_core",
            "different_in_core" => "different in events_core",
            "extra_in_core" => "only in events_core",
            "second_roots" => "with a second root span",
            "beside_live" => "beside live rows",
            kind => kind,
        };
        outcome.assert_stderr_contains(&format!("{count} {told}"));
    }
    assert_eq!(wrong(&report), total, "{report}");
    assert_eq!(report["equal"], false, "{report}");
    assert_eq!(report["complete"], true, "{report}");
    let examples = report["examples"].as_array().unwrap().len() as u64;
    assert_eq!(examples, total.min(10), "{report}");
    (outcome, report)
}

/// Numbers in the report that should be 0.
const WRONG: [&str; 14] = [
    "missing",
    "extra",
    "doubled",
    "superseded",
    "different",
    "stale",
    "different_experiments",
    "doubled_in_full",
    "doubled_in_core",
    "missing_in_core",
    "different_in_core",
    "extra_in_core",
    "second_roots",
    "beside_live",
];

fn wrong(report: &Value) -> u64 {
    WRONG
        .iter()
        .map(|kind| report[kind].as_u64().unwrap())
        .sum()
}

/// The sample month, backfilled into `events_full`. Nobody changes these tables.
fn month() -> &'static Database<'static> {
    static MONTH: OnceLock<Database<'static>> = OnceLock::new();
    MONTH.get_or_init(|| {
        let database = Server::shared().sample_month("verified_month", OBSERVATIONS);
        backfill(&database).run().assert_code(0);
        database
    })
}

/// The small month, backfilled, for one test.
fn small_backfilled(name: &str) -> Database<'static> {
    let database = small_month(name);
    backfill(&database).run().assert_code(0);
    database
}

/// A copy of the events of the sample month, for one test.
fn copy_of_events(name: &str, condition: &str) {
    let database = month();
    execute(database, &format!("CREATE TABLE {name} AS events_full"));
    execute(
        database,
        &format!("INSERT INTO {name} SELECT * FROM events_full FINAL WHERE {condition}"),
    );
}

/// Writes some events once more, with other values in some columns.
fn write_changed(database: &Database, table: &str, changes: &str, condition: &str) {
    // The condition stands inside: outside it would be about the changed values.
    execute(
        database,
        &format!(
            "INSERT INTO {table} SELECT * REPLACE ({changes}) \
             FROM (SELECT * FROM {table} FINAL WHERE {condition})"
        ),
    );
    merge(database, table);
}

/// Makes one of the rows that stand more than once, in the table that the view fills too.
fn merge(database: &Database, table: &str) {
    execute(database, &format!("OPTIMIZE TABLE {table} FINAL"));
    if table == "events_full" {
        execute(database, "OPTIMIZE TABLE events_core FINAL");
    }
}

/// Deletes events from the target and from the table that the view fills.
fn delete_events(database: &Database, condition: &str) {
    for table in ["events_full", "events_core"] {
        let sql = format!("DELETE FROM {table} WHERE {condition}");
        execute(database, &sql);
    }
}

/// A condition that is true for one event: one of those for which `condition` is.
fn one_event(database: &Database, condition: &str) -> String {
    let found = format!(
        "({KEY}) IN (SELECT {KEY} FROM events_full FINAL WHERE {condition} \
         ORDER BY cityHash64(span_id), span_id LIMIT 1)"
    );
    let count = format!("SELECT count() FROM events_full FINAL WHERE {found}");
    assert_eq!(ask_number(database, &count), 1, "{condition}");
    found
}

// -------------------------------------------------------------------------------------------------
// Equal
// -------------------------------------------------------------------------------------------------

#[test]
fn a_complete_backfill_is_equal() {
    let database = month();
    let report = assert_equal(&verify(database));
    let rows = ask_number(database, "SELECT count() FROM events_full FINAL");
    assert_eq!(report["observations"], rows, "{report}");
    assert_eq!(report["events"], rows, "{report}");
    assert_eq!(
        report["target_table"],
        format!("{}.events_full", database.name)
    );
    let experiments = serde_json::json!(["experiment_*"]);
    assert_eq!(report["not_compared"], experiments, "{report}");
    assert!(report["pieces"].as_u64().unwrap() > 100, "{report}");
    for number in ["newer", "written_by_others", "root_spans", "retries"] {
        assert_eq!(report[number], 0, "{number}: {report}");
    }
    let without_trace = report["observations_without_trace"].as_u64().unwrap();
    assert!(without_trace > 0 && without_trace < rows / 5, "{report}");
    assert!(report["seconds"].as_f64().unwrap() > 0.0, "{report}");
}

#[test]
fn an_older_events_table_with_tags_in_its_metadata_is_equal() {
    let database = Server::shared().database("verified_older_events");
    let full = &month().name;
    for table in ["traces", "observations"] {
        execute(
            &database,
            &format!("CREATE TABLE {table} AS {full}.{table}"),
        );
        execute(
            &database,
            &format!(
                "INSERT INTO {table} SELECT * FROM {full}.{table} SETTINGS optimize_on_insert = 0"
            ),
        );
    }
    database.execute_file(&repository_file("bench-data/older-events.sql"), &[]);
    for options in [&[][..], &["--no-trace-metadata"]] {
        execute(&database, "TRUNCATE TABLE events");
        backfill(&database)
            .args(options.iter().copied())
            .arg("--restart")
            .run()
            .assert_code(0);
        assert_equal(&verify(&database).args(options.iter().copied()));
    }
    // Without the option again, the metadata of the traces is missed.
    let outcome = verify(&database).run();
    outcome.assert_one_error(1, &["stale"]);
    assert!(
        outcome.stdout.contains("metadata_names is"),
        "{}",
        outcome.stdout
    );
}

#[test]
fn what_cannot_be_compared_is_said() {
    let database = small_month("verified_json");
    database.execute_file(&repository_file("bench-data/older-events.sql"), &[]);
    for change in [
        "DROP COLUMN metadata_names",
        "DROP COLUMN metadata_values",
        "DROP COLUMN metadata",
        "ADD COLUMN metadata JSON",
    ] {
        execute(&database, &format!("ALTER TABLE events {change}"));
    }
    backfill(&database)
        .args(["--target-table", "events"])
        .run()
        .assert_code(0);
    let tool = verify_table(&database, "events");
    let report = assert_equal(&tool);
    assert_eq!(
        report["not_compared"],
        serde_json::json!(["metadata (JSON)"])
    );
    let outcome = tool.run();
    outcome.assert_stderr_contains("not compared: metadata (JSON)");
    // The rest is.
    write_changed(
        &database,
        "events",
        "'x' AS user_id",
        "span_id = 'observation-4'",
    );
    assert_wrong(&tool, &[("stale", 1)]);
}

#[test]
fn options_that_change_the_result_change_what_is_expected() {
    let database = month();
    execute(database, "CREATE TABLE without_items AS events_full");
    execute(database, "CREATE TABLE own_metadata AS events_full");
    for (target, option) in [
        ("without_items", "--exclude-dataset-items"),
        ("own_metadata", "--no-trace-metadata"),
    ] {
        let options = ["--target-table", target, option];
        backfill(database).args(options).run().assert_code(0);
        assert_equal(&verify(database).args(options));
    }
    let left_out = ask_number(
        database,
        "SELECT (SELECT count() FROM events_full FINAL) - (SELECT count() FROM without_items FINAL)",
    );
    assert!(left_out > 100);
    assert_wrong(
        &verify_table(database, "without_items"),
        &[("missing", left_out)],
    );
    // Left out on both sides: what is there of them is none of it.
    let report = assert_equal(&verify(database).arg("--exclude-dataset-items"));
    let without = ask_number(database, "SELECT count() FROM without_items FINAL");
    assert_eq!(report["events"], without, "{report}");
}

#[test]
fn the_trace_counts_in_whatever_month_it_lies() {
    let database = small_month("verified_far");
    execute(
        &database,
        "INSERT INTO traces (id, timestamp, user_id, project_id, event_ts) VALUES
         ('far', '2024-01-15 10:00:00', 'far user', 'project', '2024-01-15 10:00:01')",
    );
    // The latest version of this one lies months before the others.
    execute(
        &database,
        "INSERT INTO traces (id, timestamp, user_id, project_id, event_ts) VALUES
         ('moved', '2024-06-10 10:00:00', 'first user', 'project', '2024-06-10 10:00:01'),
         ('moved', '2024-02-10 10:00:00', 'last user', 'project', '2024-06-11 10:00:01')",
    );
    // And of this one it is a deletion.
    execute(
        &database,
        "INSERT INTO traces (id, timestamp, user_id, project_id, event_ts, is_deleted) VALUES
         ('gone', '2024-06-10 10:00:00', 'gone user', 'project', '2024-06-10 10:00:01', 0),
         ('gone', '2024-08-10 10:00:00', 'gone user', 'project', '2024-06-11 10:00:01', 1)",
    );
    execute(
        &database,
        "INSERT INTO observations (id, trace_id, project_id, type, start_time, event_ts) VALUES
         ('of-far', 'far', 'project', 'SPAN', '2024-06-10 10:00:00', '2024-06-10 10:00:01'),
         ('of-moved', 'moved', 'project', 'SPAN', '2024-06-10 10:00:00', '2024-06-10 10:00:01'),
         ('of-gone', 'gone', 'project', 'SPAN', '2024-06-10 10:00:00', '2024-06-10 10:00:01')",
    );
    backfill(&database).run().assert_code(0);
    let set_user = |span: &str, user: &str| {
        let changes = format!("'{user}' AS user_id");
        let condition = format!("span_id = '{span}'");
        write_changed(&database, "events_full", &changes, &condition);
    };
    let right = [
        ("of-far", "far user"),
        ("of-moved", "last user"),
        ("of-gone", ""),
    ];
    let wrong = [
        ("of-far", ""),
        ("of-moved", "first user"),
        ("of-gone", "gone user"),
    ];
    for (span, user) in right {
        set_user(span, user);
    }
    let report = assert_equal(&verify(&database));
    // Of trace-4, of nowhere, and the one that is gone.
    assert_eq!(report["observations_without_trace"], 3, "{report}");
    for (span, user) in wrong {
        set_user(span, user);
    }
    let (outcome, _) = assert_wrong(&verify(&database), &[("stale", 3)]);
    for ((_, wrong), (_, right)) in wrong.iter().zip(right) {
        let told = format!("user_id is '{wrong}', should be '{right}'");
        assert!(outcome.stdout.contains(&told), "{}", outcome.stdout);
    }
}

#[test]
fn the_traces_that_a_run_does_not_know_are_not_expected() {
    let database = small_month("verified_unknown");
    execute(
        &database,
        "INSERT INTO traces (id, timestamp, user_id, project_id, event_ts) VALUES
         ('far', '2024-01-15 10:00:00', 'far user', 'project', 1),
         ('near', '2024-05-30 10:00:00', 'near user', 'project', 1),
         ('moved', '2024-06-10 10:00:00', 'first user', 'project', 1),
         ('moved', '2024-01-10 10:00:00', 'last user', 'project', 2)",
    );
    execute(
        &database,
        "INSERT INTO observations (id, trace_id, project_id, type, start_time, event_ts)
         SELECT concat('of-', trace), trace, 'project', 'SPAN', '2024-06-10 10:00:00', 1
         FROM (SELECT arrayJoin(['far', 'near', 'moved']) AS trace)",
    );
    let options: [&[&str]; 3] = [
        &[],
        &["--no-remote-lookup", "--trace-margin-days", "2"],
        &["--no-remote-lookup"],
    ];
    // What each run knows less than the one before it.
    let less: [u64; 3] = [0, 2, 3];
    for (index, run) in options.iter().enumerate() {
        execute(&database, "TRUNCATE TABLE events_full");
        execute(&database, "TRUNCATE TABLE events_core");
        let run = backfill(&database)
            .args(run.iter().copied())
            .arg("--restart");
        run.run().assert_code(0);
        for (other, of_verify) in options.iter().enumerate() {
            let tool = verify(&database).args(of_verify.iter().copied());
            match less[index].abs_diff(less[other]) {
                0 => drop(assert_equal(&tool)),
                stale => drop(assert_wrong(&tool, &[("stale", stale)])),
            }
        }
    }
}

#[test]
fn two_observations_with_one_key_are_one_event() {
    let database = small_month("verified_types");
    execute(
        &database,
        "INSERT INTO observations (id, trace_id, project_id, type, start_time, name, event_ts) VALUES
         ('twin', 'trace-1', 'project', 'SPAN', '2024-06-03 12:00:00', 'early', '2024-06-03 12:00:01'),
         ('twin', 'trace-1', 'project', 'TOOL', '2024-06-03 12:00:00', 'late', '2024-06-03 12:00:02')",
    );
    backfill(&database).run().assert_code(0);
    merge(&database, "events_full");
    let report = assert_equal(&verify(&database));
    assert_eq!(report["observations"], 7, "{report}");
    assert_eq!(report["observations_superseded"], 1, "{report}");
    assert_eq!(report["events"], 7, "{report}");
}

// -------------------------------------------------------------------------------------------------
// Different
// -------------------------------------------------------------------------------------------------

#[test]
fn one_changed_byte_in_any_kind_of_column_is_noticed() {
    let database = month();
    copy_of_events("with_changes", "1");
    let changes = [
        // Kind, column, which event, its new value.
        (
            "different",
            "input",
            "length(input) > 100",
            "concat(left(input, 50), '~', substring(input, 52))",
        ),
        (
            "different",
            "output",
            "output != ''",
            "concat(output, '\\0')",
        ),
        (
            "different",
            "name",
            "name != ''",
            "concat(left(name, -1), char(bitXor(ascii(right(name, 1)), 1)))",
        ),
        ("different", "level", "level = 'DEFAULT'", "'default'"),
        ("different", "parent_span_id", "parent_span_id != ''", "''"),
        (
            "different",
            "end_time",
            "end_time IS NOT NULL",
            "end_time + INTERVAL 1 MICROSECOND",
        ),
        (
            "different",
            "completion_start_time",
            "completion_start_time IS NOT NULL",
            "NULL",
        ),
        (
            "different",
            "created_at",
            "1",
            "created_at + INTERVAL 1 MICROSECOND",
        ),
        ("different", "prompt_version", "prompt_version IS NULL", "0"),
        (
            "different",
            "usage_pricing_tier_name",
            "usage_pricing_tier_name IS NULL",
            "''",
        ),
        (
            "different",
            "usage_details",
            "notEmpty(usage_details)",
            "mapApply((k, v) -> (k, v + 1), usage_details)",
        ),
        (
            "different",
            "cost_details",
            "length(cost_details) > 1",
            "mapFromArrays(arrayReverse(mapKeys(cost_details)), arrayReverse(mapValues(cost_details)))",
        ),
        (
            "different",
            "provided_cost_details",
            "notEmpty(provided_cost_details)",
            "mapApply((k, v) -> (k, v + toDecimal64('0.000000000001', 12)), provided_cost_details)",
        ),
        (
            "different",
            "tool_calls",
            "notEmpty(tool_calls)",
            "arrayPopBack(tool_calls)",
        ),
        (
            "different",
            "tool_definitions",
            "notEmpty(tool_definitions)",
            "mapApply((k, v) -> (k, concat(v, ' ')), tool_definitions)",
        ),
        (
            "different",
            "event_ts",
            "1",
            "event_ts - INTERVAL 1 MICROSECOND",
        ),
        ("stale", "version", "version != ''", "''"),
        (
            "stale",
            "trace_name",
            "trace_name != ''",
            "lower(concat(trace_name, 'X'))",
        ),
        ("stale", "session_id", "session_id = ''", "' '"),
        (
            "stale",
            "tags",
            "length(tags) > 1 AND tags[1] != tags[2]",
            "arrayReverse(tags)",
        ),
        ("stale", "public", "1", "NOT public"),
        ("stale", "bookmarked", "bookmarked", "false"),
        (
            "stale",
            "metadata_names",
            "notEmpty(metadata_names)",
            "arrayMap(name -> concat(name, '.'), metadata_names)",
        ),
        (
            "stale",
            "metadata_values",
            "length(metadata_values) > 5 AND metadata_values[1] != metadata_values[2]",
            "arrayConcat([metadata_values[2], metadata_values[1]], arraySlice(metadata_values, 3))",
        ),
    ];
    let tool = verify_table(database, "with_changes");
    for (kind, column, which, value) in changes {
        let event = one_event(database, which);
        if column == "event_ts" {
            // An earlier version would lose against the one that is there.
            execute(database, &format!("DELETE FROM with_changes WHERE {event}"));
        }
        execute(
            database,
            &format!(
                "INSERT INTO with_changes \
                 SELECT * REPLACE (CAST({value}, toTypeName({column})) AS {column}) \
                 FROM (SELECT * FROM events_full FINAL WHERE {event})"
            ),
        );
        merge(database, "with_changes");
        let (outcome, report) = assert_wrong(&tool, &[(kind, 1)]);
        let columns = &report["examples"][0]["columns"];
        assert_eq!(*columns, serde_json::json!([column]), "{report}");
        assert!(
            outcome.stdout.contains(&format!("{column} ")),
            "{column}: {}",
            outcome.stdout
        );
        // As it was.
        execute(
            database,
            &format!("INSERT INTO with_changes SELECT * FROM events_full FINAL WHERE {event}"),
        );
        merge(database, "with_changes");
    }
    assert_equal(&tool);
}

#[test]
fn a_missing_row_is_noticed() {
    let database = month();
    let event = one_event(database, "1");
    copy_of_events("with_a_row_less", &format!("NOT {event}"));
    let tool = verify_table(database, "with_a_row_less");
    let (outcome, report) = assert_wrong(&tool, &[("missing", 1)]);
    let span = ask(
        database,
        &format!("SELECT project_id FROM events_full FINAL WHERE {event}"),
    );
    assert_eq!(report["examples"][0]["project_id"], span);
    assert!(outcome.stdout.contains(": missing\n"), "{}", outcome.stdout);
    outcome.assert_stderr_contains("events-backfill repair");
}

#[test]
fn a_doubled_row_is_noticed_on_the_same_day_and_on_another() {
    let database = month();
    let event = one_event(database, "start_time BETWEEN '2024-06-10' AND '2024-06-20'");
    for (table, later) in [
        ("with_a_double", "1 MILLISECOND"),
        ("with_a_far_double", "5 DAY"),
    ] {
        copy_of_events(table, "1");
        let changes = format!("start_time + INTERVAL {later} AS start_time");
        write_changed(database, table, &changes, &event);
        let (outcome, _) = assert_wrong(&verify_table(database, table), &[("doubled", 1)]);
        assert!(
            outcome.stdout.contains("the right one starts at 2024-06-1"),
            "{}",
            outcome.stdout
        );
        outcome.assert_stderr_contains("by hand");
    }
}

#[test]
fn a_row_that_belongs_to_another_trace_is_noticed() {
    let database = small_backfilled("verified_other_trace");
    write_changed(
        &database,
        "events_full",
        "'trace-2' AS trace_id",
        "span_id = 'observation-1'",
    );
    let (outcome, _) = assert_wrong(&verify(&database), &[("doubled", 1)]);
    let told = "extra event: the observation belongs to trace trace-1";
    assert!(outcome.stdout.contains(told), "{}", outcome.stdout);
    // Without the right one, that is missing too.
    delete_events(
        &database,
        "trace_id = 'trace-1' AND span_id = 'observation-1'",
    );
    assert_wrong(&verify(&database), &[("doubled", 1), ("missing", 1)]);
    // What something live writes is no error, wherever it is.
    write_changed(
        &database,
        "events_full",
        "event_ts + 1 AS event_ts",
        "trace_id = 'trace-2' AND span_id = 'observation-1'",
    );
    let (_, report) = assert_wrong(&verify(&database), &[("missing", 1)]);
    assert_eq!(report["newer"], 1, "{report}");
}

#[test]
fn a_row_that_is_there_twice_is_noticed_in_a_table_that_keeps_both() {
    let database = small_month("verified_plain_table");
    database.execute_file(&repository_file("bench-data/older-events.sql"), &[]);
    execute(
        &database,
        "CREATE TABLE plain AS events ENGINE = MergeTree
         PARTITION BY toYYYYMM(start_time) PRIMARY KEY project_id ORDER BY (project_id, start_time)",
    );
    backfill(&database)
        .args(["--target-table", "plain", "--allow-duplicates"])
        .run()
        .assert_code(0);
    let tool = verify_table(&database, "plain");
    assert_equal(&tool);
    execute(
        &database,
        "INSERT INTO plain SELECT * FROM plain WHERE span_id = 'observation-3'",
    );
    assert_wrong(&tool, &[("doubled", 1)]);
}

#[test]
fn a_stale_attribute_is_noticed() {
    let database = small_backfilled("verified_stale");
    assert_equal(&verify(&database));
    execute(
        &database,
        "INSERT INTO traces (id, timestamp, name, user_id, metadata, project_id, tags, event_ts) VALUES
         ('trace-1', '2024-06-03 10:00:00', 'latest version', 'new user', map('a', '1'), 'project', ['x'],
          '2024-06-03 12:00:00')",
    );
    let (outcome, report) = assert_wrong(&verify(&database), &[("stale", 2)]);
    assert!(
        outcome.stdout.contains(
            "project project, trace trace-1, span observation-1, 2024-06-03 10:00:00.000 UTC: \
             user_id is 'ann', should be 'new user'\n"
        ),
        "{}",
        outcome.stdout
    );
    assert_eq!(report["pieces_different"], 1, "{report}");
    // Which another run mends.
    backfill(&database).arg("--restart").run().assert_code(0);
    merge(&database, "events_full");
    assert_equal(&verify(&database));
}

#[test]
fn an_extra_row_is_noticed() {
    let database = small_backfilled("verified_extra");
    write_changed(
        &database,
        "events_full",
        "'nobody''s' AS span_id",
        "span_id = 'observation-1'",
    );
    let (outcome, _) = assert_wrong(&verify(&database), &[("extra", 1)]);
    assert!(
        outcome.stdout.contains("span nobody's, ")
            && outcome.stdout.contains("belongs to no observation"),
        "{}",
        outcome.stdout
    );
    // A project without any observation.
    write_changed(
        &database,
        "events_full",
        "'unknown' AS project_id",
        "span_id = 'observation-1'",
    );
    assert_wrong(&verify(&database), &[("extra", 2)]);
}

#[test]
fn an_event_of_a_deleted_observation_is_noticed() {
    let database = small_backfilled("verified_deleted");
    write_changed(
        &database,
        "observations",
        "1 AS is_deleted, event_ts + 1 AS event_ts",
        "id = 'observation-2'",
    );
    assert_wrong(&verify(&database), &[("extra", 1)]);
}

// -------------------------------------------------------------------------------------------------
// No error
// -------------------------------------------------------------------------------------------------

#[test]
fn what_was_written_later_is_counted_and_no_error() {
    let database = small_backfilled("verified_newer");
    write_changed(
        &database,
        "events_full",
        "'live' AS name, event_ts + 1 AS event_ts",
        "span_id = 'observation-1'",
    );
    let report = assert_equal(&verify(&database));
    assert_eq!(report["newer"], 1, "{report}");
    // Deleted later, which hides the row.
    write_changed(
        &database,
        "events_full",
        "1 AS is_deleted, event_ts + 1 AS event_ts",
        "span_id = 'observation-3'",
    );
    let report = assert_equal(&verify(&database));
    assert_eq!(report["newer"], 2, "{report}");
    // Not later: an error after all.
    write_changed(
        &database,
        "events_full",
        "'not live' AS name",
        "span_id = 'observation-4'",
    );
    let (_, report) = assert_wrong(&verify(&database), &[("different", 1)]);
    assert_eq!(report["newer"], 2, "{report}");
}

#[test]
fn root_spans_and_what_others_wrote_are_counted_and_no_error() {
    let database = small_backfilled("verified_others");
    write_changed(
        &database,
        "events_full",
        "'t-trace-1' AS span_id, '' AS parent_span_id",
        "span_id = 'observation-1'",
    );
    write_changed(
        &database,
        "events_full",
        "'live' AS span_id, 'otel' AS source",
        "span_id = 'observation-1'",
    );
    let report = assert_equal(&verify(&database));
    assert_eq!(report["root_spans"], 1, "{report}");
    assert_eq!(report["written_by_others"], 1, "{report}");
    // A root span of a trace that is not there: trace-4 is deleted.
    write_changed(
        &database,
        "events_full",
        "'t-trace-4' AS span_id",
        "span_id = 'observation-5'",
    );
    assert_wrong(&verify(&database), &[("extra", 1)]);
}

// -------------------------------------------------------------------------------------------------
// Root spans
// -------------------------------------------------------------------------------------------------

/// The traces of the month that need a root span, straight from the description of the tables: those
/// of which no observation is called so.
fn traces_with_root_spans() -> String {
    format!(
        "(SELECT * FROM traces ORDER BY event_ts DESC LIMIT 1 BY project_id, id) AS t
         WHERE is_deleted = 0 AND toYYYYMM(timestamp) = {SAMPLE_PARTITION}
             AND (t.project_id, t.id) NOT IN
                 (SELECT project_id, trace_id FROM observations FINAL
                  WHERE toYYYYMM(start_time) = {SAMPLE_PARTITION} AND id = concat('t-', trace_id))"
    )
}

/// Writes these root spans.
fn write_root_spans(database: &Database, target: &str) {
    execute(
        database,
        &format!(
            "INSERT INTO {target} (project_id, trace_id, span_id, parent_span_id, start_time, name,
                 type, environment, level, version, release, trace_name, user_id, session_id, tags,
                 public, bookmarked, model_parameters, input, output, metadata_names,
                 metadata_values, source, created_at, updated_at, event_ts, is_deleted)
             SELECT project_id, id, concat('t-', id), '', timestamp, name, 'SPAN', environment,
                 'DEFAULT', ifNull(version, ''), ifNull(release, ''), name, ifNull(user_id, ''),
                 ifNull(session_id, ''), tags, public, bookmarked, '{{}}', ifNull(input, ''),
                 ifNull(output, ''), mapKeys(metadata), mapValues(metadata),
                 if(mapContains(metadata, 'resourceAttributes'), 'otel-backfill',
                     'ingestion-api-backfill'),
                 created_at, updated_at, event_ts, 0
             FROM {}",
            traces_with_root_spans()
        ),
    );
    merge(database, target);
}

fn verify_root_spans(database: &Database, target: &str) -> Tool {
    verify_table(database, target).arg("--root-spans")
}

#[test]
fn root_spans_are_compared_with_their_traces() {
    let database = month();
    copy_of_events("with_root_spans", "1");
    let traces = ask_number(
        database,
        &format!("SELECT count() FROM {}", traces_with_root_spans()),
    );
    let tool = verify_root_spans(database, "with_root_spans");
    let outcome = tool.run();
    outcome.assert_one_error(1, &["missing"]);
    let missing = tool.report()["missing"].as_u64().unwrap();
    assert_eq!(missing, traces);

    write_root_spans(database, "with_root_spans");
    let report = assert_equal(&tool);
    assert_eq!(report["root_spans"], traces, "{report}");
    assert_eq!(report["root_spans_compared"], true, "{report}");
    // Whoever does not ask for them need not mind.
    let report = assert_equal(&verify_table(database, "with_root_spans"));
    assert!(
        report["root_spans"].as_u64().unwrap() >= missing,
        "{report}"
    );
    assert_eq!(report["root_spans_compared"], false, "{report}");

    let is_root = "span_id = concat('t-', trace_id) AND parent_span_id = '' AND \
                   (project_id, span_id) NOT IN (SELECT project_id, id FROM observations)";
    for (kind, column, which, value) in [
        (
            "different",
            "input",
            "input != ''",
            "concat(left(input, -1), '~')",
        ),
        ("different", "end_time", "1", "start_time"),
        (
            "stale",
            "metadata_values",
            "notEmpty(metadata_values)",
            "arrayPopBack(metadata_values)",
        ),
        ("stale", "trace_name", "1", "concat(trace_name, ' ')"),
        ("stale", "bookmarked", "1", "NOT bookmarked"),
    ] {
        let event = format!(
            "({KEY}) IN (SELECT {KEY} FROM with_root_spans FINAL WHERE {which} AND {is_root} \
             ORDER BY cityHash64(span_id), span_id LIMIT 1)"
        );
        execute(
            database,
            "CREATE OR REPLACE TABLE one_root_span AS events_full",
        );
        execute(
            database,
            &format!("INSERT INTO one_root_span SELECT * FROM with_root_spans FINAL WHERE {event}"),
        );
        let changes = format!("CAST({value}, toTypeName({column})) AS {column}");
        write_changed(database, "with_root_spans", &changes, &event);
        let (_, report) = assert_wrong(&tool, &[(kind, 1)]);
        let columns = &report["examples"][0]["columns"];
        assert_eq!(*columns, serde_json::json!([column]), "{report}");
        execute(
            database,
            "INSERT INTO with_root_spans SELECT * FROM one_root_span",
        );
        merge(database, "with_root_spans");
    }
    let report = assert_equal(&tool);
    assert_eq!(report["root_spans"], traces, "{report}");
}

#[test]
fn root_spans_that_are_missing_doubled_or_of_no_trace_are_noticed() {
    let database = small_backfilled("verified_root_spans");
    // The latest version of this one lies in another month.
    execute(
        &database,
        "INSERT INTO traces (id, timestamp, project_id, event_ts) VALUES
         ('moved', '2024-06-10 10:00:00', 'project', 1),
         ('moved', '2024-02-10 10:00:00', 'project', 2)",
    );
    write_root_spans(&database, "events_full");
    let tool = verify_root_spans(&database, "events_full");
    let report = assert_equal(&tool);
    assert_eq!(report["root_spans"], 3, "{report}");
    let root = |changes: &str| {
        let condition = "span_id = 't-trace-2' AND start_time = '2024-06-04 10:00:00'";
        write_changed(&database, "events_full", changes, condition);
    };
    root("'trace-4' AS trace_id, 't-trace-4' AS span_id, 'other' AS project_id");
    root(
        "'moved' AS trace_id, 't-moved' AS span_id, toDateTime64('2024-06-10 10:00:00', 6) AS start_time",
    );
    assert_wrong(&tool, &[("extra", 2)]);
    root("start_time + 1 AS start_time");
    let (outcome, _) = assert_wrong(&tool, &[("extra", 2), ("doubled", 1)]);
    let told = "the right one starts at 2024-06-04 10:00:00.000 UTC";
    assert!(outcome.stdout.contains(told), "{}", outcome.stdout);
    delete_events(&database, "span_id = 't-trace-3'");
    assert_wrong(&tool, &[("extra", 2), ("doubled", 1), ("missing", 1)]);
}

#[test]
fn an_observation_that_is_called_as_a_root_span_is_in_its_place() {
    let database = small_month("verified_either");
    execute(
        &database,
        "INSERT INTO observations (id, trace_id, project_id, type, start_time, name, event_ts) VALUES
         ('t-trace-1', 'trace-1', 'project', 'SPAN', '2024-06-03 10:00:00', 'early', '2024-06-03 10:00:01'),
         ('t-trace-2', 'trace-2', 'project', 'SPAN', '2024-06-24 10:00:00', 'far', '2024-06-24 11:00:00'),
         ('t-trace-3', 'trace-3', 'other', 'SPAN', '2024-06-05 10:00:01', 'elsewhere', '2024-06-05 10:00:01')",
    );
    backfill(&database).run().assert_code(0);
    let tool = verify_root_spans(&database, "events_full");
    let report = assert_equal(&tool);
    assert_eq!(report["root_spans"], 0, "{report}");
    assert_equal(&verify(&database));
    // One that a trace makes besides.
    let root = "start_time + 1 AS start_time, 'of the trace' AS name";
    write_changed(&database, "events_full", root, "span_id = 't-trace-3'");
    assert_wrong(&tool, &[("doubled", 1)]);
    delete_events(&database, "span_id = 't-trace-3'");
    assert_wrong(&tool, &[("missing", 1)]);
    assert_wrong(&verify(&database), &[("missing", 1)]);
}

#[test]
fn root_spans_of_dataset_items_are_left_out() {
    let database = small_month("verified_root_items");
    execute(
        &database,
        "INSERT INTO dataset_run_items_rmt (id, project_id, dataset_run_id, dataset_item_id, dataset_id, trace_id, event_ts)
         VALUES ('item', 'project', 'run', 'item', 'dataset', 'trace-1', 1)",
    );
    backfill(&database)
        .arg("--exclude-dataset-items")
        .run()
        .assert_code(0);
    let tool = verify_root_spans(&database, "events_full").arg("--exclude-dataset-items");
    assert_wrong(&tool, &[("missing", 2)]);
    write_root_spans(&database, "events_full");
    let report = assert_equal(&tool);
    assert_eq!(report["root_spans"], 2, "{report}");
}

// -------------------------------------------------------------------------------------------------
// Versions of observations
// -------------------------------------------------------------------------------------------------

/// Adds a later version of an observation.
fn add_version(database: &Database, id: &str, changes: &str) {
    execute(
        database,
        &format!(
            "INSERT INTO observations SELECT * REPLACE ({changes}, event_ts + 1 AS event_ts) \
             FROM (SELECT * FROM observations FINAL WHERE id = '{id}')"
        ),
    );
}

#[test]
fn a_version_of_another_type_takes_the_place_of_the_older_one() {
    let database = small_backfilled("verified_other_type");
    add_version(&database, "observation-3", "'GENERATION' AS type");
    let (_, report) = assert_wrong(&verify(&database), &[("different", 1)]);
    assert_eq!(report["observations_superseded"], 1, "{report}");
    write_changed(
        &database,
        "events_full",
        "'GENERATION' AS type, event_ts + 1 AS event_ts",
        "span_id = 'observation-3'",
    );
    let report = assert_equal(&verify(&database));
    assert_eq!(report["observations"], 6, "{report}");
}

#[test]
fn an_event_of_a_version_that_does_not_count_is_noticed() {
    for (name, later, in_month) in [
        ("time", "1 SECOND", true),
        ("day", "1 DAY", true),
        ("month", "1 MONTH", false),
        ("earlier_month", "-2 MONTH", false),
    ] {
        let database = small_backfilled(&format!("verified_other_{name}"));
        let later = format!("start_time + INTERVAL {later} AS start_time");
        let changes = format!("{later}, 'TOOL' AS type");
        add_version(&database, "observation-3", &changes);
        let tool = verify(&database);
        let mut expected = vec![("superseded", 1)];
        if in_month {
            expected.push(("missing", 1));
        }
        let (outcome, _) = assert_wrong(&tool, &expected);
        let told = "superseded event: the right one starts at";
        assert!(outcome.stdout.contains(told), "{}", outcome.stdout);
        outcome.assert_stderr_contains("by hand");
        let start = "2024-06-04 10:00:00";
        write_changed(
            &database,
            "events_full",
            &format!("{changes}, event_ts + 1 AS event_ts"),
            "span_id = 'observation-3'",
        );
        assert_wrong(&tool, &[("superseded", 1)]);
        delete_events(
            &database,
            &format!("span_id = 'observation-3' AND start_time = '{start}'"),
        );
        let report = assert_equal(&tool);
        assert_eq!(report["observations_superseded"], 1, "{report}");
    }
}

#[test]
fn an_observation_whose_later_version_is_a_deletion_has_no_event() {
    for (name, changes) in [
        ("type", "'TOOL' AS type"),
        ("day", "start_time + INTERVAL 1 DAY AS start_time"),
        ("month", "start_time + INTERVAL 1 MONTH AS start_time"),
    ] {
        let database = small_backfilled(&format!("verified_deleted_{name}"));
        let changes = format!("{changes}, 1 AS is_deleted");
        add_version(&database, "observation-3", &changes);
        let (outcome, _) = assert_wrong(&verify(&database), &[("superseded", 1)]);
        let told = "the observation has since been deleted";
        assert!(outcome.stdout.contains(told), "{}", outcome.stdout);
        delete_events(&database, "span_id = 'observation-3'");
        assert_equal(&verify(&database));
    }
}

// -------------------------------------------------------------------------------------------------
// As v4 reads: without FINAL, and from events_core
// -------------------------------------------------------------------------------------------------

#[test]
fn what_stands_more_than_once_is_noticed_until_it_is_merged() {
    let database = small_backfilled("verified_unmerged");
    for table in ["events_full", "events_core"] {
        execute(&database, &format!("SYSTEM STOP MERGES {table}"));
    }
    let again = |table: &str, span: &str| {
        let sql = format!("INSERT INTO {table} SELECT * FROM {table} WHERE span_id = '{span}'");
        execute(&database, &sql);
    };
    again("events_core", "observation-1");
    let (outcome, _) = assert_wrong(&verify(&database), &[("doubled_in_core", 1)]);
    outcome.assert_stderr_contains("repair --partition 202406 --optimize");
    // The sentence and the summary name the table that has them.
    let name = &database.name;
    outcome.assert_stderr_contains(&format!("1 row of {name}.events_core, partition 202406"));
    assert!(
        outcome.stdout.contains("\nUnmerged in events_core "),
        "{}",
        outcome.stdout
    );
    again("events_full", "observation-2");
    assert_wrong(
        &verify(&database),
        &[("doubled_in_core", 2), ("doubled_in_full", 1)],
    );
    for table in ["events_full", "events_core"] {
        execute(&database, &format!("SYSTEM START MERGES {table}"));
    }
    merge(&database, "events_full");
    assert_equal(&verify(&database));
}

#[test]
fn live_rows_that_stand_twice_are_none_of_a_backfill() {
    let database = small_backfilled("verified_live_twice");
    write_changed(
        &database,
        "events_full",
        "'otel-dual-write' AS source",
        "span_id = 'observation-1'",
    );
    for table in ["events_full", "events_core"] {
        execute(&database, &format!("SYSTEM STOP MERGES {table}"));
    }
    execute(
        &database,
        "INSERT INTO events_full SELECT * FROM events_full WHERE span_id = 'observation-1'",
    );
    assert_equal(&verify(&database));
}

#[test]
fn an_event_beside_a_live_one_of_the_same_span_is_noticed() {
    let database = small_backfilled("verified_beside_live");
    write_changed(
        &database,
        "events_full",
        "start_time + INTERVAL 5 MICROSECOND AS start_time, 'otel' AS source",
        "span_id = 'observation-1'",
    );
    let (_, report) = assert_wrong(&verify(&database), &[("beside_live", 1)]);
    assert_eq!(report["written_by_others"], 1, "{report}");
}

#[test]
fn events_core_has_what_the_view_makes() {
    let database = small_backfilled("verified_core");
    let report = assert_equal(&verify(&database));
    assert_eq!(
        report["core_table"],
        format!("{}.events_core", database.name)
    );
    let keep = "CREATE TABLE kept AS events_core";
    execute(&database, keep);
    execute(&database, "INSERT INTO kept SELECT * FROM events_core");
    let restore = || {
        execute(&database, "TRUNCATE TABLE events_core");
        execute(&database, "INSERT INTO events_core SELECT * FROM kept");
    };
    execute(
        &database,
        "DELETE FROM events_core WHERE span_id = 'observation-1'",
    );
    let (outcome, _) = assert_wrong(&verify(&database), &[("missing_in_core", 1)]);
    outcome.assert_stderr_contains("events-backfill repair");
    restore();
    write_changed(
        &database,
        "events_core",
        "'other' AS output",
        "span_id = 'observation-1'",
    );
    assert_wrong(&verify(&database), &[("different_in_core", 1)]);
    restore();
    write_changed(
        &database,
        "events_core",
        "'nobody' AS span_id, '2024-06-20' AS start_time",
        "span_id = 'observation-1'",
    );
    let (outcome, _) = assert_wrong(&verify(&database), &[("extra_in_core", 1)]);
    outcome.assert_stderr_contains("by hand");
    for words in ["\nOnly in events_core ", ": exists only in events_core\n"] {
        assert!(outcome.stdout.contains(words), "{}", outcome.stdout);
    }
    restore();
    assert_equal(&verify(&database));
    // Of a live row it is enough that it is there.
    write_changed(
        &database,
        "events_full",
        "'otel' AS source",
        "span_id = 'observation-1'",
    );
    write_changed(
        &database,
        "events_core",
        "'other' AS output",
        "span_id = 'observation-1'",
    );
    assert_equal(&verify(&database));
}

// -------------------------------------------------------------------------------------------------
// Beside Langfuse
// -------------------------------------------------------------------------------------------------

#[test]
fn a_live_row_has_to_be_there_and_may_say_what_it_likes() {
    let database = small_backfilled("verified_live");
    write_changed(
        &database,
        "events_full",
        "'ingestion-api-dual-write' AS source, 'live' AS name, 'sdk' AS ingestion_sdk_name",
        "span_id = 'observation-1'",
    );
    let report = assert_equal(&verify(&database));
    assert_eq!(report["left_to_live_rows"], 1, "{report}");
    assert_eq!(report["written_by_others"], 0, "{report}");
    assert_eq!(report["observations"], 6, "{report}");
    delete_events(&database, "span_id = 'observation-1'");
    assert_wrong(&verify(&database), &[("missing", 1)]);
}

#[test]
fn what_changed_late_is_left_to_langfuse_where_it_writes_too() {
    let database = small_backfilled("verified_late");
    execute(
        &database,
        "INSERT INTO observations (id, trace_id, project_id, type, start_time, event_ts) VALUES
         ('late', 'trace-1', 'project', 'SPAN', '2024-06-10 10:00:00', now64(3) - 60)",
    );
    add_version(
        &database,
        "observation-3",
        "'changed' AS name, now64(3) AS updated_at",
    );
    execute(
        &database,
        "INSERT INTO observations SELECT * REPLACE (now64(3) AS event_ts) \
         FROM (SELECT * FROM observations FINAL WHERE id = 'observation-4')",
    );
    // Nothing else writes to the target.
    assert_wrong(&verify(&database), &[("missing", 1), ("different", 2)]);
    write_changed(
        &database,
        "events_full",
        "'live' AS span_id, 'otel' AS source",
        "span_id = 'observation-1'",
    );
    let (_, report) = assert_wrong(&verify(&database), &[("different", 1)]);
    assert_eq!(report["left_to_live_path"], 2, "{report}");
    assert!(report["until"].as_str().is_some(), "{report}");
    let until = verify(&database).args(["--until", "2024-06-03T00:00:00Z"]);
    let report = assert_equal(&until);
    assert_eq!(report["until"], "2024-06-03T00:00:00Z", "{report}");
    assert_eq!(report["left_to_live_path"], 3, "{report}");
    let until = verify(&database).args(["--until", "2100-01-01 00:00:00"]);
    assert_wrong(&until, &[("missing", 1), ("different", 2)]);
    let until = verify(&database).args(["--until", "soon"]);
    until.run().assert_one_error(2, &["--until", "soon"]);
}

#[test]
fn a_trace_with_a_live_root_span_needs_no_other() {
    let database = small_backfilled("verified_live_root");
    write_root_spans(&database, "events_full");
    let tool = verify_root_spans(&database, "events_full");
    assert_equal(&tool);
    write_changed(
        &database,
        "events_full",
        "'live-root' AS span_id, '' AS parent_span_id, 'otel' AS source",
        "span_id = 'observation-1'",
    );
    let (outcome, _) = assert_wrong(&tool, &[("second_roots", 1)]);
    let told = "second root span: the trace already has a live one";
    assert!(outcome.stdout.contains(told), "{}", outcome.stdout);
    outcome.assert_stderr_contains("by hand");
    // Also where root spans are not compared.
    assert_wrong(&verify(&database), &[("second_roots", 1)]);
    delete_events(&database, "span_id = 't-trace-1'");
    let report = assert_equal(&tool);
    assert_eq!(report["root_spans_left_to_live_roots"], 1, "{report}");
    // Another trace's is missed as before.
    delete_events(&database, "span_id = 't-trace-2'");
    assert_wrong(&tool, &[("missing", 1)]);
    // Also where the live one lies far away.
    write_changed(
        &database,
        "events_full",
        "'far-root' AS span_id, '' AS parent_span_id, 'otel' AS source, \
         start_time + INTERVAL 40 DAY AS start_time",
        "span_id = 'observation-3'",
    );
    let report = assert_equal(&tool);
    assert_eq!(report["root_spans_left_to_live_roots"], 2, "{report}");
}

// -------------------------------------------------------------------------------------------------
// Experiments
// -------------------------------------------------------------------------------------------------

/// The small month with items of dataset runs, backfilled with what they say.
fn with_experiments(name: &str) -> (Database<'static>, Tool) {
    let database = small_month(name);
    execute(
        &database,
        "INSERT INTO observations (id, trace_id, project_id, type, start_time, parent_observation_id, event_ts) VALUES
         ('below', 'trace-1', 'project', 'SPAN', '2024-06-03 10:00:02', 'observation-2', 1),
         ('further below', 'trace-1', 'project', 'SPAN', '2024-06-03 10:00:03', 'below', 1)",
    );
    execute(
        &database,
        "INSERT INTO dataset_run_items_rmt (id, project_id, dataset_run_id, dataset_item_id, dataset_id,
             trace_id, observation_id, dataset_run_name, dataset_run_metadata, created_at, event_ts) VALUES
         ('of trace', 'project', 'run', 'first', 'dataset', 'trace-1', NULL, 'name', map('a', 'b'), 1, 1),
         ('of span', 'project', 'run', 'second', 'dataset', 'trace-1', 'observation-2', 'name', map(), 1, 1)",
    );
    let options = ["--root-spans", "--experiments"];
    backfill(&database).args(options).run().assert_code(0);
    let tool = verify(&database).args(options);
    (database, tool)
}

#[test]
fn the_columns_of_experiments_are_compared() {
    let (database, tool) = with_experiments("verified_experiments");
    let report = assert_equal(&tool);
    assert_eq!(report["spans_in_experiments"], 5, "{report}");
    assert_eq!(report["not_compared"], serde_json::json!([]), "{report}");
    let changes = [
        ("experiment_name", "'other'"),
        ("experiment_metadata_values", "['x']"),
        ("experiment_item_version", "now64(6)"),
        ("experiment_item_root_span_id", "''"),
    ];
    execute(&database, "CREATE TABLE kept AS events_full");
    execute(
        &database,
        "INSERT INTO kept SELECT * FROM events_full FINAL",
    );
    for span in ["t-trace-1", "below", "observation-4"] {
        for (column, value) in changes {
            if span == "observation-4" && value == "''" {
                continue;
            }
            let condition = format!("span_id = '{span}'");
            let changes = format!("CAST({value}, toTypeName({column})) AS {column}");
            write_changed(&database, "events_full", &changes, &condition);
            let (outcome, _) = assert_wrong(&tool, &[("different_experiments", 1)]);
            outcome.assert_stderr_contains("events-backfill repair");
            let restore = format!("INSERT INTO events_full SELECT * FROM kept WHERE {condition}");
            execute(&database, &restore);
            merge(&database, "events_full");
        }
    }
    assert_equal(&tool);
    // An item that is linked later.
    execute(
        &database,
        "INSERT INTO dataset_run_items_rmt (id, project_id, dataset_run_id, dataset_item_id, dataset_id,
             trace_id, event_ts) VALUES ('later', 'other', 'run', 'third', 'dataset', 'trace-3', 2)",
    );
    assert_wrong(&tool, &[("different_experiments", 2)]);
}

#[test]
fn spans_below_a_deleted_one_belong_to_the_item_above() {
    let (database, tool) = with_experiments("verified_experiments_deleted");
    add_version(&database, "below", "1 AS is_deleted");
    delete_events(&database, "span_id = 'below'");
    let report = assert_equal(&tool);
    assert_eq!(report["spans_in_experiments"], 4, "{report}");
}

#[test]
fn an_item_that_a_live_span_carries_is_expected_on_no_other() {
    let (database, tool) = with_experiments("verified_experiments_live");
    write_changed(
        &database,
        "events_full",
        "'live' AS span_id, 'otel-dual-write-experiments' AS source",
        "span_id = 'observation-2'",
    );
    // observation-2, and the two below it.
    assert_wrong(&tool, &[("different_experiments", 3)]);
    let nothing = "'' AS experiment_id, '' AS experiment_name, '' AS experiment_dataset_id, \
                   '' AS experiment_item_id, '' AS experiment_item_root_span_id";
    let spans = "span_id IN ('observation-2', 'below', 'further below')";
    write_changed(&database, "events_full", nothing, spans);
    let report = assert_equal(&tool);
    assert_eq!(report["items_left_to_live_spans"], 1, "{report}");
    assert_eq!(report["spans_in_experiments"], 2, "{report}");
}

#[test]
fn a_month_with_every_oddity_and_its_experiments_is_equal() {
    let database = Server::shared().sample_month("verified_experiments_month", OBSERVATIONS);
    let options = ["--root-spans", "--experiments"];
    backfill(&database).args(options).run().assert_code(0);
    let report = assert_equal(&verify(&database).args(options));
    assert!(
        report["spans_in_experiments"].as_u64().unwrap() > 200,
        "{report}"
    );
}

// -------------------------------------------------------------------------------------------------
// What it takes
// -------------------------------------------------------------------------------------------------

#[test]
fn a_user_who_may_only_read_suffices() {
    let reader = |tool: Tool| {
        tool.env("CLICKHOUSE_USER", READER.0)
            .env("CLICKHOUSE_PASSWORD", READER.1)
    };
    assert_equal(&reader(verify(month())));
    // Also where it has to look closer.
    let database = small_backfilled("verified_by_reader");
    write_changed(
        &database,
        "events_full",
        "'x' AS user_id, 'y' AS input",
        "span_id = 'observation-1'",
    );
    write_changed(
        &database,
        "events_full",
        "'nobody' AS span_id",
        "span_id = 'observation-3'",
    );
    let tool = reader(verify(&database));
    assert_wrong(&tool, &[("different", 1), ("extra", 1)]);
}

#[test]
fn one_row_of_very_many_of_one_day_is_found() {
    let database = Server::shared().database("verified_large_day");
    database.load_schema();
    database.execute_file(&repository_file("bench-data/older-events.sql"), &[]);
    // More traces and more rows than one statement takes.
    execute(
        &database,
        "INSERT INTO traces (id, project_id, timestamp, event_ts, user_id)
         SELECT toString(number), 'project', toDateTime64('2024-06-10 00:00:00', 3) + number % 80000,
             now64(), toString(number)
         FROM numbers(900000)",
    );
    execute(
        &database,
        "INSERT INTO observations (id, trace_id, project_id, type, start_time, event_ts, input)
         SELECT concat('o', toString(number)), toString(number % 400000), 'project', 'SPAN',
             toDateTime64('2024-06-10 00:00:00', 3) + number % 80000, now64(), 'input'
         FROM numbers(800000)",
    );
    backfill(&database)
        .args(["--target-table", "events"])
        .run()
        .assert_code(0);
    let tool = verify_table(&database, "events");
    let report = assert_equal(&tool);
    assert_eq!(report["observations"], 800_000, "{report}");
    assert_eq!(report["pieces"], 1, "{report}");
    write_changed(
        &database,
        "events",
        "'inpuT' AS input",
        "span_id = 'o123456'",
    );
    write_changed(
        &database,
        "events",
        "'somebody' AS user_id",
        "span_id = 'o765432'",
    );
    let (outcome, _) = assert_wrong(&tool, &[("different", 1), ("stale", 1)]);
    assert!(
        outcome
            .stdout
            .contains("input has 5 bytes, should have 5; they agree in the first 4"),
        "{}",
        outcome.stdout
    );
}

#[test]
fn a_server_with_2_gib_suffices_for_wide_rows_in_many_parts() {
    let server = Server::start(Options {
        config: "<max_server_memory_usage>2147483648</max_server_memory_usage>".to_owned(),
        ..Options::default()
    });
    let database = server.database("verified_wide");
    database.load_schema();
    for index in [
        "idx_fts_input_low",
        "idx_fts_output_low",
        "idx_fts_metadata_values",
        "idx_fts_metadata_names",
        "idx_ngram_metadata_values",
    ] {
        execute(
            &database,
            &format!("ALTER TABLE events_full DROP INDEX {index}"),
        );
    }
    execute(&database, "DROP TABLE events_core_mv");
    for table in ["traces", "observations", "events_full"] {
        execute(&database, &format!("SYSTEM STOP MERGES {table}"));
    }
    execute(
        &database,
        "INSERT INTO traces (id, project_id, timestamp, event_ts, name, metadata)
         SELECT concat('trace-', toString(number)), 'project',
             toDateTime64('2024-06-10 00:00:00', 3) + number, now64(), 'name',
             map('large', repeat(hex(sipHash128(number)), 3000))
         FROM numbers(2000) SETTINGS max_block_size = 100",
    );
    // 40,000 rows of 20 KB on one day, in twenty parts.
    for part in 0..20 {
        execute(
            &database,
            &format!(
                "INSERT INTO observations (id, trace_id, project_id, type, start_time, event_ts, input, output)
                 SELECT concat('observation-', toString(20 * number + {part})),
                     concat('trace-', toString(number % 2000)), 'project', 'SPAN',
                     toDateTime64('2024-06-10 00:00:00', 3) + number, now64(),
                     repeat(hex(sipHash128(number, {part})), 320), repeat(hex(sipHash128(number)), 305)
                 FROM numbers(2000) SETTINGS max_block_size = 1000"
            ),
        );
    }
    // Without the large metadata, which would be 100 KB in each event.
    backfill(&database)
        .args(["--no-trace-metadata", "--batch-size", "500"])
        .run()
        .assert_code(0);
    let parts = "SELECT count() FROM system.parts WHERE database = currentDatabase() \
                 AND table = 'events_full' AND active";
    assert!(ask_number(&database, parts) >= 20);

    let tool = verify(&database).arg("--no-trace-metadata");
    let report = assert_equal(&tool);
    assert_eq!(report["observations"], 40_000, "{report}");
    assert_eq!(report["retries"], 0, "{report}");
    // With the metadata of the traces all rows are stale, and 4 GB of it are compared.
    let outcome = verify(&database).run();
    outcome.assert_one_error(1, &["40,000 stale"]);
    execute(&database, "SYSTEM FLUSH LOGS query_log");
    let most = ask(
        &database,
        "SELECT formatReadableSize(max(memory_usage)) FROM system.query_log
         WHERE position(query, 'own_hash') > 0 AND position(query, 'query_log') = 0",
    );
    println!("the largest statement took {most}");
}

#[test]
fn little_memory_per_statement_suffices() {
    let directory = tempfile::tempdir().unwrap();
    let start = |profile: &str| {
        Server::start(Options {
            data: Some(directory.path().join("data")),
            profile: profile.to_owned(),
            ..Options::default()
        })
    };
    let server = start("");
    let database = server.database("verified_little_memory");
    database.load_schema();
    database.execute_file(&repository_file("bench-data/older-events.sql"), &[]);
    // All on one day, so that nothing but shares of the traces makes it smaller.
    execute(
        &database,
        "INSERT INTO traces (id, project_id, timestamp, event_ts, user_id, tags, metadata)
         SELECT toString(sipHash128(number)), 'project',
             toDateTime64('2024-06-10 00:00:00', 3) + number % 80000, now64(), toString(number),
             ['a', 'b'], map('one', toString(number), 'two', '2', 'three', '3')
         FROM numbers(500000)",
    );
    // Every tenth has a version on another day too, which counts.
    execute(
        &database,
        "INSERT INTO traces (id, project_id, timestamp, event_ts, user_id)
         SELECT toString(sipHash128(number * 10)), 'project',
             toDateTime64('2024-06-20 00:00:00', 3), now64() + 1, 'moved'
         FROM numbers(50000)",
    );
    execute(
        &database,
        "INSERT INTO observations (id, trace_id, project_id, type, start_time, event_ts, input)
         SELECT concat('o', toString(number)), toString(sipHash128(number)), 'project', 'SPAN',
             toDateTime64('2024-06-10 00:00:00', 3) + number % 80000, now64(), repeat('x', 1000)
         FROM numbers(500000)",
    );
    backfill(&database)
        .args(["--target-table", "events"])
        .run()
        .assert_code(0);
    let name = database.name.clone();
    drop(server);

    let server = start("<max_memory_usage>200000000</max_memory_usage>");
    let database = Database {
        server: &server,
        name,
    };
    let tool = verify_table(&database, "events");
    let report = assert_equal(&tool);
    assert_eq!(report["observations"], 500_000, "{report}");
    // The limit was met.
    assert!(report["divided"].as_u64().unwrap() > 0, "{report}");
    execute(
        &database,
        "INSERT INTO events SELECT * REPLACE ('somebody' AS user_id)
         FROM (SELECT * FROM events FINAL WHERE span_id = 'o123456')
         SETTINGS max_memory_usage = 0",
    );
    merge(&database, "events");
    // And a fifth of the events.
    execute(
        &database,
        "DELETE FROM events WHERE cityHash64(span_id) % 5 = 0 AND span_id != 'o123456' \
         SETTINGS max_memory_usage = 0",
    );
    let left = "SELECT count() FROM events FINAL SETTINGS max_memory_usage = 0";
    let missing = 500_000 - ask_number(&database, left);
    tool.run().assert_one_error(1, &["missing, 1 stale"]);
    let report = tool.report();
    assert_eq!(report["stale"], 1, "{report}");
    assert_eq!(report["missing"], missing, "{report}");
    assert_eq!(wrong(&report), missing + 1, "{report}");
}

// -------------------------------------------------------------------------------------------------
// Trouble on the way
// -------------------------------------------------------------------------------------------------

#[test]
fn what_breaks_on_the_way_is_asked_again() {
    let database = month();
    let proxy = Proxy::start(database.server.http_port());
    let cut = proxy.arm(Fault::once(
        "groupBitXor",
        Place::ResponseByte(0),
        Action::Cut,
    ));
    let tool = verify(database).env("CLICKHOUSE_URL", proxy.url());
    let report = assert_equal(&tool);
    assert_eq!(cut.count(), 1);
    assert_eq!(report["retries"], 1, "{report}");
}

#[test]
fn a_signal_ends_it_at_once_and_the_report_says_how_far_it_was() {
    for (signal, code) in [(nix::libc::SIGINT, 130), (nix::libc::SIGTERM, 143)] {
        let database = month();
        let proxy = Proxy::start(database.server.http_port());
        let stall = proxy.arm(
            Fault::once(
                "groupBitXor",
                Place::ResponseByte(0),
                Action::Stall(FOREVER),
            )
            .always(),
        );
        let tool = verify(database).env("CLICKHOUSE_URL", proxy.url());
        let mut running = tool.spawn();
        let started = Instant::now();
        while stall.count() == 0 {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "nothing is asked"
            );
            thread::sleep(Duration::from_millis(20));
        }
        let asked = Instant::now();
        running.signal(signal);
        let outcome = running.wait();
        assert!(asked.elapsed() < Duration::from_secs(5));
        outcome.assert_one_error(code, &["interrupted"]);
        let report = tool.report();
        assert_eq!(report["complete"], false, "{report}");
        assert_eq!(report["equal"], false, "{report}");
        assert!(outcome.stdout.contains("incomplete"), "{}", outcome.stdout);
    }
}

#[test]
fn a_server_that_fails_is_no_verdict() {
    let database = month();
    let proxy = Proxy::start(database.server.http_port());
    proxy.arm(
        Fault::once(
            "groupBitXor",
            Place::ResponseByte(0),
            Action::Answer {
                status: "503 Service Unavailable",
                close: false,
            },
        )
        .always(),
    );
    let tool = verify(database)
        .env("CLICKHOUSE_URL", proxy.url())
        .env("MAX_RETRIES", "1");
    tool.run()
        .assert_one_error(1, &["reading", "failed", "503"]);
    assert_eq!(tool.report()["complete"], false);
    assert_eq!(tool.report()["equal"], false);
}

#[test]
fn quiet_prints_nothing_but_the_error() {
    let database = small_backfilled("verified_quietly");
    let tool = verify(&database).arg("--quiet");
    let outcome = tool.run();
    outcome.assert_code(0);
    assert_eq!((&*outcome.stdout, &*outcome.stderr), ("", ""));
    delete_events(&database, "span_id = 'observation-1'");
    let outcome = tool.run();
    outcome.assert_one_error(1, &["1 missing"]);
    assert_eq!(outcome.stdout, "");
    assert_eq!(outcome.stderr.lines().count(), 1);
}

#[test]
fn a_month_that_no_run_has_filled_is_to_be_run_and_not_repaired() {
    let database = small_month("verified_unfilled");
    let run = backfill(&database);
    let state = run.state_dir().to_str().unwrap().to_owned();
    let verify = verify(&database).env("STATE_DIR", &state);
    let words = [
        "no run has filled partition 202406",
        "(6 events missing)",
        "run `events-backfill --partition 202406` first",
    ];
    let advises_a_run = || {
        let outcome = verify.run();
        let sentence = outcome.assert_one_error(1, &words);
        assert!(!sentence.contains("repair"), "{sentence}");
    };
    advises_a_run();
    // What Langfuse wrote itself does not come from a run.
    run.run().assert_code(0);
    write_changed(
        &database,
        "events_full",
        "'otel-dual-write' AS source",
        "span_id = 'observation-1'",
    );
    execute(&database, "CREATE TABLE live AS events_full");
    execute(
        &database,
        "INSERT INTO live SELECT * FROM events_full FINAL WHERE source = 'otel-dual-write'",
    );
    let of_live = verify_table(&database, "live");
    of_live
        .run()
        .assert_one_error(1, &["no run has filled", "(5 events missing)"]);
    // A month that is finished is not run again.
    for table in ["events_full", "events_core"] {
        execute(&database, &format!("TRUNCATE TABLE {table}"));
    }
    verify
        .run()
        .assert_one_error(1, &["(6 missing)", "events-backfill repair"]);
    fs::remove_dir_all(&state).unwrap();
    advises_a_run();
}

#[test]
fn a_month_without_observations_is_a_mistake() {
    let database = small_month("verified_nothing");
    let tool = Tool::new(&database)
        .args(["verify", "--partition", "200001"])
        .env("STATE_DIR", "nowhere");
    tool.run().assert_one_error(2, &["200001"]);
}
