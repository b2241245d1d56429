//! The program stays within `--memory-limit`, whatever the rows are like.
//!
//! The figure is the one in the report, which is the peak that the kernel has seen.

// A test or a benchmark ends by a panic, and its numbers are small.
#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::expect_used,
    clippy::missing_docs_in_private_items,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub
)]

mod support;

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use support::differential::{ask, ask_number, execute};
use support::{Database, SAMPLE_PARTITION, Server, Tool, repository_file};

const MIB: u64 = 1024 * 1024;

/// One run at a time: two at once would slow each other down, and with them the inserts that make
/// the program wait, and hold what it has read.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tables of a current Langfuse, and an `events` table without text indexes: what the server does
/// with the rows is not of interest here.
fn tables(name: &str) -> Database<'static> {
    let database = Server::shared().database(name);
    database.load_schema();
    database.execute_file(&repository_file("bench-data/older-events.sql"), &[]);
    database
}

/// Fills both tables: so many traces, each with so many observations, spread over the days of the
/// month and over the types. `input` is an expression over the number of the observation, and
/// `metadata` one over the number of the trace.
fn fill(database: &Database, traces: u64, each: u64, input: &str, metadata: &str) {
    execute(
        database,
        &format!(
            "INSERT INTO traces (id, project_id, timestamp, event_ts, name, tags, metadata)
             SELECT concat('trace-', toString(number)), 'project',
                 toDateTime64('2024-06-01 00:00:00', 3) + number % 28 * 86400, now64(), 'name',
                 ['one', 'two'], {metadata}
             FROM numbers({traces})
             SETTINGS max_block_size = 100"
        ),
    );
    execute(
        database,
        &format!(
            "INSERT INTO observations (id, trace_id, project_id, type, start_time, event_ts, input)
             SELECT concat('observation-', toString(number)),
                 concat('trace-', toString(number % {traces})), 'project',
                 ['SPAN', 'EVENT', 'GENERATION', 'TOOL'][1 + number % 4],
                 toDateTime64('2024-06-01 00:00:00', 3) + number % {traces} % 28 * 86400
                     + number % 80000,
                 now64(), {input}
             FROM numbers({})
             SETTINGS max_block_size = 4096",
            traces * each
        ),
    );
    // Few parts, so that there may be many segments.
    execute(database, "OPTIMIZE TABLE observations FINAL");
}

/// Runs the program with a limit, and panics unless it wrote every row and stayed within it.
fn assert_within_limit(database: &Database, limit: u64, least_segments: u64) {
    let _turn = one_at_a_time();
    execute(database, "TRUNCATE TABLE events");
    let tool = Tool::new(database).args(["--target-table", "events"]);
    run_within_limit(tool, database, limit, least_segments);
    assert_eq!(
        ask_number(database, "SELECT count() FROM events FINAL"),
        ask_number(database, "SELECT count() FROM observations"),
    );
}

fn run_within_limit(tool: Tool, database: &Database, limit: u64, least_segments: u64) {
    let tool = tool.args(["--memory-limit", &format!("{limit}MiB")]).args([
        "--concurrency",
        "4",
        "--segment-rows",
        "1000",
    ]);
    run_within(tool, database, limit, least_segments);
}

fn run_within(tool: Tool, database: &Database, limit: u64, least_segments: u64) {
    let tool = tool.args(["--partition", SAMPLE_PARTITION]);
    tool.run().assert_code(0);

    let report = tool.report();
    let rows = ask_number(database, "SELECT count() FROM observations");
    assert_eq!(report["events_inserted"], rows, "{report}");
    let segments = report["segments_total"].as_u64().unwrap();
    let peak = report["peak_rss_bytes"].as_u64().unwrap();
    println!(
        "{}: limit {limit} MiB, peak {} MiB, {segments} segments, {} s",
        database.name,
        peak / MIB,
        report["seconds"]["total"]
    );
    assert!(segments >= least_segments, "{segments} segments");
    assert!(
        peak <= limit * MIB,
        "peak memory is {} MiB with a limit of {limit} MiB\n{report}",
        peak / MIB
    );
}

/// 200,000 rows of 3 KB: enough rows for several segments at once.
fn long_rows() -> &'static Database<'static> {
    static DATABASE: OnceLock<Database<'static>> = OnceLock::new();
    DATABASE.get_or_init(|| {
        let database = tables("long_rows");
        let input = "repeat(hex(sipHash128(number)), 94)";
        fill(&database, 20_000, 10, input, "map('key', 'value')");
        database
    })
}

/// 30,000 rows of 20 KB.
fn longer_rows() -> &'static Database<'static> {
    static DATABASE: OnceLock<Database<'static>> = OnceLock::new();
    DATABASE.get_or_init(|| {
        let database = tables("longer_rows");
        let input = "repeat(hex(sipHash128(number)), 625)";
        fill(&database, 3_000, 10, input, "map('key', 'value')");
        database
    })
}

/// 5,000 rows, each of which gets 100 KB of metadata from its trace: 500 MB out of 2.5 MB.
fn large_trace_metadata() -> &'static Database<'static> {
    static DATABASE: OnceLock<Database<'static>> = OnceLock::new();
    DATABASE.get_or_init(|| {
        let database = tables("large_trace_metadata");
        let metadata = "map('large', repeat(hex(sipHash128(number)), 3125), 'small', 'value')";
        fill(&database, 25, 200, "'short'", metadata);
        database
    })
}

/// 100,000 rows of 3 KB, none of which has a trace: all of them wait.
fn waiting_rows() -> &'static Database<'static> {
    static DATABASE: OnceLock<Database<'static>> = OnceLock::new();
    DATABASE.get_or_init(|| {
        let database = tables("waiting_rows");
        let input = "repeat(hex(sipHash128(number)), 94)";
        fill(&database, 10_000, 10, input, "map('key', 'value')");
        execute(&database, "TRUNCATE TABLE traces");
        database
    })
}

#[test]
fn rows_that_wait_for_their_traces_stay_within_256_mib() {
    assert_within_limit(waiting_rows(), 256, 1);
}

/// The limit is what unusual rows may take.
#[test]
fn long_rows_take_200_mib_at_most_by_default() {
    let _turn = one_at_a_time();
    let database = long_rows();
    execute(database, "TRUNCATE TABLE events");
    let tool = Tool::new(database)
        .args(["--target-table", "events"])
        .args(["--concurrency", "2"]);
    run_within(tool, database, 200, 1);
}

#[test]
fn long_rows_stay_within_128_mib() {
    assert_within_limit(long_rows(), 128, 3);
}

#[test]
fn longer_rows_stay_within_128_mib() {
    assert_within_limit(longer_rows(), 128, 1);
}

#[test]
fn rows_that_wait_for_their_traces_stay_within_128_mib() {
    assert_within_limit(waiting_rows(), 128, 1);
}

#[test]
fn long_rows_stay_within_256_mib() {
    assert_within_limit(long_rows(), 256, 3);
}

#[test]
fn long_rows_stay_within_512_mib() {
    assert_within_limit(long_rows(), 512, 3);
}

#[test]
fn longer_rows_stay_within_256_mib() {
    assert_within_limit(longer_rows(), 256, 1);
}

#[test]
fn longer_rows_stay_within_512_mib() {
    assert_within_limit(longer_rows(), 512, 1);
}

/// Each observation has a trace of its own, with 100 KB of metadata: all of one
/// block's traces together are far larger than any budget.
fn large_traces() -> &'static Database<'static> {
    static DATABASE: OnceLock<Database<'static>> = OnceLock::new();
    DATABASE.get_or_init(|| {
        let database = tables("large_traces");
        let metadata = "map('large', repeat(hex(sipHash128(number)), 3125))";
        fill(&database, 6_000, 1, "'short'", metadata);
        database
    })
}

#[test]
fn large_metadata_of_a_trace_per_observation_stays_within_256_mib() {
    assert_within_limit(large_traces(), 256, 1);
}

#[test]
fn large_metadata_that_many_observations_share_stays_within_256_mib() {
    assert_within_limit(large_trace_metadata(), 256, 1);
}

#[test]
fn large_metadata_that_many_observations_share_stays_within_512_mib() {
    assert_within_limit(large_trace_metadata(), 512, 1);
}

/// 5,000 rows and 25 root spans, each of which gets 100 KB from the item of a dataset run: 500 MB
/// out of 2.5 MB. The target is like `events_full`, without its indexes.
fn large_items() -> &'static Database<'static> {
    static DATABASE: OnceLock<Database<'static>> = OnceLock::new();
    DATABASE.get_or_init(|| {
        let database = tables("large_items");
        fill(&database, 25, 200, "'short'", "map('key', 'value')");
        execute(
            &database,
            "INSERT INTO dataset_run_items_rmt (id, project_id, dataset_run_id, dataset_item_id, \
                 dataset_id, trace_id, dataset_item_expected_output, event_ts) \
             SELECT id, project_id, 'run', 'item', 'dataset', id, \
                 repeat(hex(sipHash128(id)), 3125), 1 FROM traces",
        );
        let columns = ask(
            &database,
            "SELECT arrayStringConcat(groupArray(name), ', ') FROM system.columns \
             WHERE database = currentDatabase() AND table = 'events_full' \
                 AND default_kind NOT IN ('MATERIALIZED', 'ALIAS')",
        );
        execute(
            &database,
            &format!(
                "CREATE TABLE events_with_experiments \
                 ENGINE = ReplacingMergeTree(event_ts, is_deleted) \
                 ORDER BY (project_id, start_time, trace_id, span_id) \
                 EMPTY AS SELECT {columns} FROM events_full"
            ),
        );
        database
    })
}

#[test]
fn large_items_of_dataset_runs_stay_within_256_mib() {
    let database = large_items();
    let _turn = one_at_a_time();
    let tool = Tool::new(database).args([
        "--target-table",
        "events_with_experiments",
        "--root-spans",
        "--experiments",
    ]);
    run_within_limit(tool, database, 256, 1);
    assert_eq!(
        ask_number(
            database,
            "SELECT countIf(length(experiment_item_expected_output) = 100000) \
             FROM events_with_experiments FINAL"
        ),
        5_025,
    );
}

/// 4.4 million traces, on 20 days: more than the cache holds indexes and filters of with a limit of 128 MiB.
/// One in 1,430 has a later version five days after. Of each three of the 30,000 observations one has its
/// trace on its own day, one ten days before, and one has none.
fn many_traces() -> Database<'static> {
    let database = tables("many_traces");
    let day = "toDateTime64('2024-06-01 00:00:00', 3) + 86400";
    execute(
        &database,
        &format!(
            "INSERT INTO traces (id, project_id, timestamp, event_ts, user_id)
             SELECT lower(hex(sipHash128(number))), 'project', {day} * (number % 20), 1, 'first'
             FROM numbers(4400000)
             UNION ALL
             SELECT lower(hex(sipHash128(number * 1430))), 'project',
                 {day} * (number * 1430 % 20 + 5), 2, 'second'
             FROM numbers(3000)"
        ),
    );
    execute(
        &database,
        &format!(
            "INSERT INTO observations (id, trace_id, project_id, type, start_time, event_ts)
             SELECT toString(number),
                 if(number % 3 = 2, 'none', lower(hex(sipHash128(number * 143)))), 'project', 'SPAN',
                 {day} * (number * 143 % 20 + if(number % 3 = 1, 10, 0)), 1
             FROM numbers(30000)"
        ),
    );
    database
}

#[test]
fn traces_far_away_and_on_several_days_are_found_where_their_indexes_do_not_stay_in_the_cache() {
    let _turn = one_at_a_time();
    let database = many_traces();
    for more in [&[][..], &["--no-remote-lookup"]] {
        execute(&database, "TRUNCATE TABLE events");
        let tool = Tool::new(&database)
            .args(["--target-table", "events", "--memory-limit", "128MiB"])
            .args(["--concurrency", "2"])
            .args(more);
        run_within(tool, &database, 128, 1);
        let users = "SELECT arrayStringConcat(groupArray(concat(user_id, '=', toString(events))), ' ') FROM (
             SELECT user_id, count() AS events FROM events FINAL GROUP BY user_id ORDER BY user_id)";
        assert_eq!(ask(&database, users), "=10000 first=18000 second=2000");
    }
}
