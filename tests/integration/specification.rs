//! What the program writes is, row by row and column by column, what the specification in SQL says.
//!
//! All tests but a few work on one generated month with every oddity, each into a target of its
//! own. Merges are stopped throughout: of each row that has several versions, all of them are there
//! to be read, and a row that is written twice is there twice.

use std::env;
use std::process::Command;
use std::sync::OnceLock;

use crate::support::differential::{
    Specification, ask, ask_number, assert_equal, differences, execute, keep_versions_apart,
};
use crate::support::{Database, SAMPLE_PARTITION, Server, Tool, repository_file};

/// From this number on, the generator includes every oddity.
const OBSERVATIONS: u64 = 20_000;

/// The columns that observations had not always had.
const LATER_COLUMNS: [&str; 5] = [
    "usage_pricing_tier_id",
    "usage_pricing_tier_name",
    "tool_definitions",
    "tool_calls",
    "tool_call_names",
];

/// The database that most tests share: sources that nobody changes, `events_full` for one test
/// only, and the table `expected`.
fn month() -> &'static Database<'static> {
    static MONTH: OnceLock<Database<'static>> = OnceLock::new();
    MONTH.get_or_init(|| {
        let database = Server::shared().database("differential");
        database.load_schema();
        keep_versions_apart(
            &database,
            &["traces", "observations", "events_full", "events_core"],
        );
        database.load_sample_month(OBSERVATIONS);
        Specification::current().fill(&database, SAMPLE_PARTITION, "events_full", "expected");
        assert_month_is_worth_comparing(&database);
        database
    })
}

/// Guards the tests themselves: an empty table equals an empty table.
fn assert_month_is_worth_comparing(database: &Database) {
    let expected = ask_number(database, "SELECT count() FROM expected");
    assert!(expected > OBSERVATIONS * 9 / 10, "{expected} rows");
    for table in ["traces", "observations"] {
        let versions = ask_number(database, &format!("SELECT count() FROM {table}"));
        let rows = ask_number(database, &format!("SELECT count() FROM {table} FINAL"));
        assert!(
            versions > rows + rows / 50,
            "{table} has unmerged versions: {versions} of {rows} rows"
        );
    }
}

/// An empty table like `events_full`, without the view.
fn new_target(database: &Database, name: &str) {
    execute(database, &format!("CREATE TABLE {name} AS events_full"));
    keep_versions_apart(database, &[name]);
}

/// An empty table for what is expected, like `events_full`.
fn new_expected(database: &Database, name: &str) {
    execute(
        database,
        &format!("CREATE TABLE {name} AS events_full ENGINE = Memory"),
    );
}

/// The program, ready to write the sample month into one table.
fn backfill_into(database: &Database, target: &str) -> Tool {
    Tool::new(database).args(["--partition", SAMPLE_PARTITION, "--target-table", target])
}

/// Panics unless the report says that so many observations were processed and written.
#[track_caller]
fn assert_reported(tool: &Tool, processed: u64, inserted: u64) {
    let report = tool.report();
    assert_eq!(report["observations_processed"], processed, "{report}");
    assert_eq!(report["events_inserted"], inserted, "{report}");
    assert_eq!(report["errors"], 0, "{report}");
    assert_eq!(
        report["segments_done"], report["segments_total"],
        "{report}"
    );
}

/// How many observations of a month have no trace that counts.
fn observations_without_trace(database: &Database, partition: &str) -> u64 {
    ask_number(
        database,
        &format!(
            "SELECT count() FROM observations FINAL
             WHERE _partition_id = '{partition}' AND (project_id, trace_id) NOT IN (
                 SELECT project_id, id FROM traces
                 WHERE _partition_id = '{partition}'
                 GROUP BY project_id, id
                 HAVING argMax(is_deleted, event_ts) = 0)"
        ),
    )
}

#[test]
fn events_full_gets_what_the_specification_says() {
    let database = month();
    let tool = Tool::new(database).args(["--partition", SAMPLE_PARTITION]);
    tool.run().assert_code(0);

    assert_equal(database, "expected", "events_full");
    let rows = ask_number(database, "SELECT count() FROM expected");
    assert_reported(&tool, rows, rows);
    assert_eq!(
        tool.report()["observations_without_trace"],
        observations_without_trace(database, SAMPLE_PARTITION)
    );

    // The view has truncated each row once, and nobody else has written the table.
    execute(
        database,
        "CREATE TABLE expected_core AS events_core ENGINE = Memory",
    );
    execute(
        database,
        "INSERT INTO expected_core SELECT * REPLACE (
             leftUTF8(input, 200) AS input,
             leftUTF8(output, 200) AS output,
             arrayMap(value -> leftUTF8(value, 200), metadata_values) AS metadata_values)
         FROM expected",
    );
    assert_equal(database, "expected_core", "events_core");
}

#[test]
fn an_older_events_table_gets_the_tags_in_its_metadata() {
    let database = Server::shared().database("older_events");
    database.load_schema();
    for table in ["events_core_mv", "events_core", "events_full"] {
        execute(&database, &format!("DROP TABLE {table}"));
    }
    database.execute_file(&repository_file("bench-data/older-events.sql"), &[]);
    keep_versions_apart(&database, &["traces", "observations", "events"]);
    database.load_sample_month(OBSERVATIONS);
    Specification::of_older_events().fill(&database, SAMPLE_PARTITION, "events", "expected");

    // There is no events_full, so the target need not be named.
    let tool = Tool::new(&database).args(["--partition", SAMPLE_PARTITION]);
    tool.run().assert_code(0);

    assert_equal(&database, "expected", "events");
    let rows = ask_number(&database, "SELECT count() FROM expected");
    assert_reported(&tool, rows, rows);
    let tagged = "SELECT countIf(has(metadata_names, 'trace_tags')) > 1000 FROM expected";
    assert_eq!(ask(&database, tagged), "1", "tags are worth comparing");
}

#[test]
fn sources_without_the_later_columns_leave_them_to_their_defaults() {
    let full = month();
    let database = Server::shared().database("older_sources");
    database.load_schema();
    for table in ["traces", "observations"] {
        execute(&database, &format!("DROP TABLE {table}"));
    }
    database.execute_file(&repository_file("bench-data/older-sources.sql"), &[]);
    keep_versions_apart(&database, &["traces", "observations", "events_full"]);
    copy_versions(full, &database, "traces", "*");
    let later = LATER_COLUMNS.join(", ");
    copy_versions(
        full,
        &database,
        "observations",
        &format!("* EXCEPT ({later})"),
    );
    let expected = "expected_without_later_columns";
    Specification::current().fill_except(
        full,
        SAMPLE_PARTITION,
        "events_full",
        expected,
        &LATER_COLUMNS,
    );
    execute(
        &database,
        &format!("RENAME TABLE {}.{expected} TO {expected}", full.name),
    );

    let tool = Tool::new(&database).args(["--partition", SAMPLE_PARTITION]);
    tool.run().assert_code(0);

    assert_equal(&database, expected, "events_full");
}

/// Copies a table with all versions of its rows, in several parts.
fn copy_versions(from: &Database, to: &Database, table: &str, columns: &str) {
    for part in 0..4 {
        // Without the setting, one insert would keep one version of each row.
        execute(
            to,
            &format!(
                "INSERT INTO {table} SELECT {columns} FROM {}.{table}
                 WHERE cityHash64(id, event_ts) % 4 = {part}
                 SETTINGS optimize_on_insert = 0",
                from.name
            ),
        );
    }
    let count = format!("SELECT count() FROM {table}");
    assert_eq!(ask_number(to, &count), ask_number(from, &count));
}

#[test]
fn observations_of_dataset_runs_are_left_out_when_asked_for() {
    let database = month();
    new_target(database, "target_without_dataset_items");
    new_expected(database, "expected_without_dataset_items");
    execute(
        database,
        "INSERT INTO expected_without_dataset_items SELECT * FROM expected
         WHERE (project_id, trace_id) NOT IN (
             SELECT project_id, trace_id FROM dataset_run_items_rmt FINAL)",
    );
    let all = ask_number(database, "SELECT count() FROM expected");
    let left = ask_number(
        database,
        "SELECT count() FROM expected_without_dataset_items",
    );
    // Some 2 % of the observations; and of the references some are deleted.
    assert!(left < all - all / 100, "{left} of {all} rows are left");
    let any_reference = ask_number(
        database,
        "SELECT count() FROM expected WHERE (project_id, trace_id) NOT IN (
             SELECT project_id, trace_id FROM dataset_run_items_rmt)",
    );
    assert!(left > any_reference, "a deleted reference keeps no row out");

    let tool =
        backfill_into(database, "target_without_dataset_items").arg("--exclude-dataset-items");
    tool.run().assert_code(0);

    assert_equal(
        database,
        "expected_without_dataset_items",
        "target_without_dataset_items",
    );
    assert_reported(&tool, left, left);
}

#[test]
fn without_trace_metadata_an_event_has_the_metadata_of_its_observation() {
    let database = month();
    new_target(database, "target_without_trace_metadata");
    Specification::current().without_trace_metadata().fill(
        database,
        SAMPLE_PARTITION,
        "events_full",
        "expected_without_trace_metadata",
    );

    let tool = backfill_into(database, "target_without_trace_metadata").arg("--no-trace-metadata");
    tool.run().assert_code(0);

    assert_equal(
        database,
        "expected_without_trace_metadata",
        "target_without_trace_metadata",
    );
}

#[test]
fn without_trace_metadata_an_older_events_table_still_gets_the_tags() {
    let database = Server::shared().database("older_events_own_metadata");
    let full = &month().name;
    for table in ["traces", "observations"] {
        execute(
            &database,
            &format!("CREATE TABLE {table} AS {full}.{table}"),
        );
        keep_versions_apart(&database, &[table]);
        copy_versions(month(), &database, table, "*");
    }
    database.execute_file(&repository_file("bench-data/older-events.sql"), &[]);
    keep_versions_apart(&database, &["events"]);
    Specification::of_older_events()
        .without_trace_metadata()
        .fill(&database, SAMPLE_PARTITION, "events", "expected");

    Tool::new(&database)
        .args(["--partition", SAMPLE_PARTITION, "--no-trace-metadata"])
        .run()
        .assert_code(0);

    assert_equal(&database, "expected", "events");
}

#[test]
fn compression_changes_nothing() {
    let database = month();
    new_target(database, "target_compressed");
    let tool = backfill_into(database, "target_compressed").args(["--compression", "lz4"]);
    tool.run().assert_code(0);
    assert_equal(database, "expected", "target_compressed");
}

#[test]
fn small_batches_and_blocks_of_odd_sizes_change_nothing() {
    let database = month();
    new_target(database, "target_in_small_pieces");
    let tool = backfill_into(database, "target_in_small_pieces")
        .args(["--segment-rows", "500", "--batch-size", "77"])
        .args(["--concurrency", "4"])
        .env("STREAM_BLOCK_SIZE", "13");
    tool.run().assert_code(0);

    assert_equal(database, "expected", "target_in_small_pieces");
    let rows = ask_number(database, "SELECT count() FROM expected");
    assert_reported(&tool, rows, rows);
}

#[test]
fn several_segments_at_once_change_nothing() {
    let database = Server::shared().database("several_segments");
    database.load_schema();
    keep_versions_apart(&database, &["traces", "events_full"]);
    database.load_sample_month(120_000);
    // A segment takes at least some granules of every part, so there is only more than one segment
    // where there are few parts.
    execute(&database, "OPTIMIZE TABLE observations FINAL");
    Specification::current().fill(&database, SAMPLE_PARTITION, "events_full", "expected");

    let tool = Tool::new(&database)
        .args(["--partition", SAMPLE_PARTITION, "--segment-rows", "500"])
        .args(["--batch-size", "7001", "--concurrency", "4"]);
    tool.run().assert_code(0);

    assert_equal(&database, "expected", "events_full");
    let rows = ask_number(&database, "SELECT count() FROM expected");
    assert_reported(&tool, rows, rows);
    let segments = tool.report()["segments_total"].as_u64().unwrap();
    assert!(segments >= 2, "{segments} segments");
}

#[test]
fn a_second_run_into_the_same_table_converges() {
    let database = month();
    new_target(database, "target_twice");
    let tool = backfill_into(database, "target_twice");
    tool.run().assert_code(0);
    // Other pieces the second time: equal rows, but not equal inserts.
    let tool = tool.args(["--segment-rows", "3000", "--batch-size", "999", "--restart"]);
    tool.run().assert_code(0);

    let rows = ask_number(database, "SELECT count() FROM expected");
    assert_eq!(
        ask_number(database, "SELECT count() FROM target_twice"),
        2 * rows
    );
    assert_equal(database, "expected", "target_twice FINAL");
}

#[test]
fn a_dry_run_processes_everything_and_writes_nothing() {
    let database = month();
    new_target(database, "target_of_a_dry_run");
    let tool = backfill_into(database, "target_of_a_dry_run").arg("--dry-run");
    let outcome = tool.run();
    outcome.assert_code(0);

    assert_eq!(
        ask_number(database, "SELECT count() FROM target_of_a_dry_run"),
        0
    );
    let rows = ask_number(database, "SELECT count() FROM expected");
    assert_reported(&tool, rows, 0);
    let report = tool.report();
    assert_eq!(report["dry_run"], true, "{report}");
    assert_eq!(
        report["observations_without_trace"],
        observations_without_trace(database, SAMPLE_PARTITION)
    );
    assert!(
        outcome.stdout.contains("nothing was inserted"),
        "{}",
        outcome.stdout
    );
}

/// A server in another time zone has other months and other days.
///
/// The embedded server takes its time zone from the environment only, so the test `name` runs
/// itself once more, in a process that has it.
fn assert_time_zone_changes_nothing(name: &str, time_zone: &str, first_day: &str, partition: &str) {
    if env::var("TZ").as_deref() != Ok(time_zone) {
        let this_test = env::current_exe().expect("the path of this program is known");
        let again = Command::new(this_test)
            .args(["--exact", &format!("specification::{name}"), "--nocapture"])
            .env("TZ", time_zone)
            .output()
            .expect("this program can be started");
        let output = String::from_utf8_lossy(&again.stdout);
        let errors = String::from_utf8_lossy(&again.stderr);
        assert!(
            again.status.success() && output.contains("1 passed"),
            "in the time zone {time_zone}:\n{output}\n{errors}"
        );
        return;
    }
    let database = Server::shared().database("time_zone");
    assert_eq!(ask(&database, "SELECT timezone()"), time_zone);
    database.load_schema();
    keep_versions_apart(&database, &["traces", "observations", "events_full"]);
    database.load_month(first_day, OBSERVATIONS);
    Specification::current().fill(&database, partition, "events_full", "expected");
    assert_month_is_worth_comparing(&database);

    let tool = Tool::new(&database).args(["--partition", partition]);
    tool.run().assert_code(0);

    assert_equal(&database, "expected", "events_full");
    let rows = ask_number(&database, "SELECT count() FROM expected");
    assert_reported(&tool, rows, rows);
    assert_eq!(
        tool.report()["observations_without_trace"],
        observations_without_trace(&database, partition)
    );
}

#[test]
fn a_server_west_of_greenwich_in_the_month_of_the_25_hour_day_changes_nothing() {
    assert_time_zone_changes_nothing(
        "a_server_west_of_greenwich_in_the_month_of_the_25_hour_day_changes_nothing",
        "America/New_York",
        "2024-11-01",
        "202411",
    );
}

#[test]
fn a_server_east_of_greenwich_by_five_and_a_half_hours_changes_nothing() {
    assert_time_zone_changes_nothing(
        "a_server_east_of_greenwich_by_five_and_a_half_hours_changes_nothing",
        "Asia/Kolkata",
        "2024-06-01",
        "202406",
    );
}

/// An `events` table whose only place for metadata is a JSON column.
fn create_events_with_json(database: &Database) {
    database.execute_file(&repository_file("bench-data/older-events.sql"), &[]);
    for change in [
        "DROP COLUMN metadata_names",
        "DROP COLUMN metadata_values",
        "DROP COLUMN metadata",
        "ADD COLUMN metadata JSON",
    ] {
        execute(database, &format!("ALTER TABLE events {change}"));
    }
    keep_versions_apart(database, &["events"]);
}

#[test]
fn metadata_as_a_json_column_holds_the_same_pairs_as_the_arrays() {
    let full = month();
    let database = Server::shared().database("metadata_as_json");
    for table in ["traces", "observations"] {
        let from = &full.name;
        execute(
            &database,
            &format!("CREATE TABLE {table} AS {from}.{table}"),
        );
        keep_versions_apart(&database, &[table]);
        copy_versions(full, &database, table, "*");
    }
    database.execute_file(&repository_file("bench-data/older-events.sql"), &[]);
    execute(&database, "RENAME TABLE events TO events_with_arrays");
    Specification::of_older_events().fill(
        &database,
        SAMPLE_PARTITION,
        "events_with_arrays",
        "expected",
    );
    create_events_with_json(&database);

    let tool = Tool::new(&database).args(["--partition", SAMPLE_PARTITION]);
    tool.run().assert_code(0);

    let rows = ask_number(&database, "SELECT count() FROM expected");
    assert_reported(&tool, rows, rows);
    // JSON is UTF-8: of metadata that is not, only the rest can arrive as it was.
    let different = "
        SELECT span_id, expected_pairs, actual_pairs
        FROM (
            SELECT
                project_id, trace_id, span_id, start_time,
                arraySort(arrayZip(metadata_names, metadata_values)) AS expected_pairs
            FROM expected
            WHERE isValidUTF8(arrayStringConcat(arrayConcat(metadata_names, metadata_values), '\n'))
        ) AS of_expected
        LEFT JOIN (
            SELECT
                project_id, trace_id, span_id, start_time,
                arraySort(JSONExtractKeysAndValues(toJSONString(metadata), 'String')) AS actual_pairs
            FROM events
        ) AS of_events USING (project_id, trace_id, span_id, start_time)
        WHERE expected_pairs != actual_pairs";
    assert_eq!(
        ask_number(&database, &format!("SELECT count() FROM ({different})")),
        0,
        "for example\n{}",
        ask(
            &database,
            &format!("{different} ORDER BY span_id LIMIT 1 FORMAT Vertical")
        )
    );
}

/// Left to itself, ClickHouse reads a text that looks like a time as a time, in which
/// `2024-06-01T10:00:00Z` is no longer what it was. And it refuses a JSON object with a key twice,
/// which a map may have.
#[test]
fn metadata_in_a_json_column_is_text_whatever_it_looks_like() {
    let database = Server::shared().database("metadata_in_json");
    let full = &month().name;
    for table in ["traces", "observations"] {
        execute(
            &database,
            &format!("CREATE TABLE {table} AS {full}.{table}"),
        );
    }
    create_events_with_json(&database);
    execute(
        &database,
        "INSERT INTO observations (id, trace_id, project_id, type, start_time, event_ts, metadata)
         VALUES ('o', 't', 'p', 'SPAN', '2024-06-02 00:00:00', '2024-06-02 00:00:00', map(
             'date', '2024-06-01', 'time', '2024-06-01T10:00:00Z', 'other time', '2024-06-01 10:00:00.5',
             'number', '0010', 'large number', '1e400', 'truth', 'true', 'nothing', 'null',
             'object', '{\"a\":1}', 'list', '[1,2]', 'twice', 'first', 'twice', 'second'))",
    );

    Tool::new(&database)
        .args(["--partition", SAMPLE_PARTITION])
        .run()
        .assert_code(0);

    let metadata = ask(
        &database,
        "SELECT toJSONString(metadata) FROM events FORMAT TSVRaw",
    );
    let metadata: serde_json::Value = serde_json::from_str(&metadata).expect("this is JSON");
    assert_eq!(
        metadata,
        serde_json::json!({
            "date": "2024-06-01",
            "time": "2024-06-01T10:00:00Z",
            "other time": "2024-06-01 10:00:00.5",
            "number": "0010",
            "large number": "1e400",
            "truth": "true",
            "nothing": "null",
            "object": "{\"a\":1}",
            "list": "[1,2]",
            "twice": "first",
        })
    );
}

#[test]
fn the_comparison_itself_notices_every_kind_of_difference() {
    let database = month();
    new_expected(database, "expected_by_the_comparison");
    new_expected(database, "wrong");
    execute(
        database,
        "INSERT INTO expected_by_the_comparison SELECT * FROM expected ORDER BY cityHash64(span_id) LIMIT 1000",
    );
    let first = "SELECT min(span_id) FROM expected_by_the_comparison";
    let last = "SELECT max(span_id) FROM expected_by_the_comparison";
    let shape = "INSERT INTO wrong SELECT";
    let from = "FROM expected_by_the_comparison";

    let nothing: [&str; 0] = [];
    let cases: [(String, &[&str]); 7] = [
        (format!("{shape} * {from}"), &nothing),
        (
            format!("{shape} * {from} WHERE span_id != ({first})"),
            &["1 rows are missing"],
        ),
        (
            format!(
                "{shape} * {from} UNION ALL SELECT * REPLACE ('extra' AS span_id) {from} AS original WHERE original.span_id = ({first})"
            ),
            &["1 rows are too many"],
        ),
        (
            format!("{shape} * {from} UNION ALL SELECT * {from} WHERE span_id = ({first})"),
            &["1 rows are there more than once"],
        ),
        (
            format!(
                "{shape} * REPLACE (if(span_id IN (({first}), ({last})), 'x', version) AS version) {from}"
            ),
            &["column version differs in 2 rows"],
        ),
        // Null and the default are not the same; nor are two orders of the same pairs.
        (
            format!(
                "{shape} * REPLACE (if(isNull(prompt_version), 0, prompt_version) AS prompt_version) {from}"
            ),
            &["column prompt_version differs in"],
        ),
        (
            format!(
                "{shape} * REPLACE (mapFromArrays(arrayReverse(mapKeys(usage_details)), \
                 arrayReverse(mapValues(usage_details))) AS usage_details) {from}"
            ),
            &["column usage_details differs in"],
        ),
    ];
    for (statement, expected) in cases {
        execute(database, "TRUNCATE TABLE wrong");
        execute(database, &statement);
        let found = differences(database, "expected_by_the_comparison", "wrong");
        assert!(
            found.len() == expected.len()
                && found
                    .iter()
                    .zip(expected)
                    .all(|(found, expected)| found.starts_with(expected)),
            "{statement}\n{found:#?}"
        );
    }
}
