//! A repair mends what verify finds, writes nothing else, and reads hardly anything else.

use crate::support::differential::{ask_number, execute};
use crate::support::repair::{
    ALIKE, BOTH, OF_OBSERVATION, OF_TRACE, assert_each_once, assert_equal, assert_mended,
    backfilled, change, delete, merge, merges, month, repair, some_events, wait_for_rows,
};
use crate::support::{BLIND_OPERATOR, OPERATOR, Options, SAMPLE_PARTITION, Server, Tool};

#[test]
fn a_month_that_is_right_is_left_alone() {
    let database = backfilled("repair_nothing");
    let report = assert_mended(&repair(&database), 0);
    assert_eq!(report["segments_total"], 0);
}

#[test]
fn missing_events_and_root_spans_are_written() {
    let database = backfilled("repair_missing");
    delete(&database, &BOTH, &some_events(&database, OF_OBSERVATION, 7));
    delete(&database, &BOTH, &some_events(&database, OF_TRACE, 5));
    let report = assert_mended(&repair(&database), 12);
    assert_eq!(report["found"]["missing"], 12);
    assert_equal(&database);
    assert_each_once(&database);
}

#[test]
fn what_is_different_or_stale_is_written_again() {
    let database = backfilled("repair_different");
    let different = some_events(&database, &format!("{OF_OBSERVATION} AND name != ''"), 3);
    change(&database, "events_full", "'other' AS name", &different);
    let has_user = format!("user_id NOT IN ('', 'other') AND NOT ({different})");
    let stale = some_events(&database, &has_user, 4);
    change(&database, "events_full", "'other' AS user_id", &stale);
    let report = assert_mended(&repair(&database).arg("--optimize"), 7);
    assert_eq!(report["found"]["different"], 3);
    assert_eq!(report["found"]["stale"], 4);
    assert_equal(&database);
    assert_each_once(&database);
}

#[test]
fn what_is_written_again_and_waits_to_be_merged_is_no_success() {
    let database = backfilled("repair_waits");
    merges(&database, "STOP");
    let trace = "SELECT trace_id FROM events_full WHERE user_id != '' ORDER BY cityHash64(trace_id) LIMIT 1";
    execute(
        &database,
        &format!(
            "INSERT INTO traces SELECT t.* REPLACE ('somebody else' AS user_id, \
                 t.event_ts + INTERVAL 1 SECOND AS event_ts) \
             FROM traces AS t FINAL WHERE t.id IN ({trace})"
        ),
    );
    let tool = repair(&database);
    tool.run()
        .assert_one_error(1, &["unmerged duplicates", "--optimize"]);
    let written = tool.report()["rows_written"].as_u64().unwrap();
    assert!(written > 0);
    assert_eq!(tool.report()["rows_to_merge"], written);
    merges(&database, "START");
    let report = assert_mended(&repair(&database).arg("--optimize"), 0);
    assert_eq!(report["rows_to_merge"], 0);
    assert_equal(&database);
    assert_each_once(&database);
}

#[test]
fn live_rows_that_events_core_lacks_are_given_to_it() {
    let database = backfilled("repair_core_live");
    let live = some_events(&database, "1", 5);
    change(&database, "events_full", "'otel' AS source", &live);
    delete(&database, &["events_core"], &live);
    let report = assert_mended(&repair(&database), 0);
    assert_eq!(report["found"]["missing_in_core"], 5, "{report:#}");
    assert_equal(&database);
    assert_each_once(&database);
}

#[test]
fn versions_that_events_core_has_merged_away_do_not_come_back() {
    let database = backfilled("repair_merged_core");
    execute(&database, "SYSTEM STOP MERGES events_full");
    let later = some_events(&database, "1", 8);
    execute(
        &database,
        &format!(
            "INSERT INTO events_full SELECT * REPLACE (event_ts + INTERVAL 1 SECOND AS event_ts, \
                 'otel' AS source) FROM events_full FINAL WHERE {later}"
        ),
    );
    execute(&database, "OPTIMIZE TABLE events_core FINAL");
    let rows = ask_number(&database, "SELECT count() FROM events_core");
    let others = format!("NOT ({later}) AND cityHash64(span_id) % 5 = 0");
    delete(&database, &["events_core"], &others);
    execute(&database, "SYSTEM STOP MERGES events_core");
    repair(&database).run();
    assert_eq!(
        ask_number(&database, "SELECT count() FROM events_core"),
        rows
    );
}

#[test]
fn an_unfinished_run_is_finished_before_anything_is_repaired() {
    let database = backfilled("repair_unfinished");
    for table in BOTH {
        execute(&database, &format!("TRUNCATE TABLE {table}"));
    }
    let small = [
        "--batch-size",
        "20",
        "--segment-rows",
        "1000",
        "--concurrency",
        "1",
    ];
    let run = Tool::new(&database).args(ALIKE).args(small);
    let mut running = run.spawn();
    wait_for_rows(&mut running, &database, 100);
    running.terminate();
    running.wait().assert_code(143);
    let state = run.state_dir().to_str().unwrap().to_owned();
    repair(&database)
        .env("STATE_DIR", &state)
        .run()
        .assert_one_error(2, &["not finished", "--partition 202406 --resume"]);
    // Not the repair that would be refused.
    let verify = Tool::new(&database)
        .args(["verify", "--partition", SAMPLE_PARTITION])
        .env("STATE_DIR", &state);
    // It need not have the options of the run.
    let outcome = verify.run();
    outcome.assert_stderr_contains("counts as missing");
    let last = outcome.assert_one_error(1, &["--partition 202406 --resume`, then verify again"]);
    assert!(!last.contains("backfill repair"), "{last}");
    run.arg("--resume").run().assert_code(0);
    let report = assert_mended(&repair(&database).env("STATE_DIR", &state), 0);
    assert_eq!(report["segments_total"], 0);
}

#[test]
fn the_rights_that_the_readme_lists_are_enough() {
    let server = Server::start(Options {
        config: "<access_control_improvements>\
                 <select_from_system_db_requires_grant>true</select_from_system_db_requires_grant>\
                 </access_control_improvements>"
            .to_owned(),
        ..Options::default()
    });
    let database = server.database("granted");
    database.load_schema();
    database.load_sample_month(2_000);
    let by = |(name, password): (&'static str, &'static str), tool: Tool| {
        tool.env("CLICKHOUSE_USER", name)
            .env("CLICKHOUSE_PASSWORD", password)
    };
    by(BLIND_OPERATOR, Tool::new(&database).args(ALIKE))
        .run()
        .assert_one_error(2, &["GRANT SHOW TABLES"]);
    let slow = [
        "--batch-size",
        "20",
        "--segment-rows",
        "500",
        "--concurrency",
        "1",
    ];
    let run = by(OPERATOR, Tool::new(&database).args(ALIKE).args(slow));
    let mut running = run.spawn();
    wait_for_rows(&mut running, &database, 1);
    running.kill();
    running.wait();
    by(OPERATOR, run.arg("--resume")).run().assert_code(0);
    delete(&database, &BOTH, &some_events(&database, OF_OBSERVATION, 2));
    by(OPERATOR, repair(&database).arg("--optimize"))
        .run()
        .assert_code(0);
    let verify = Tool::new(&database).arg("verify").args(ALIKE);
    by(OPERATOR, verify.env("STATE_DIR", "nowhere"))
        .run()
        .assert_code(0);
}

#[test]
fn what_only_events_core_lacks_is_given_to_it() {
    let database = backfilled("repair_core");
    let rows = ask_number(&database, "SELECT count() FROM events_full");
    delete(&database, &["events_core"], &some_events(&database, "1", 6));
    let report = assert_mended(&repair(&database), 0);
    assert_eq!(report["found"]["missing_in_core"], 6);
    assert_equal(&database);
    assert_each_once(&database);
    assert_eq!(
        ask_number(&database, "SELECT count() FROM events_full"),
        rows
    );
}

#[test]
fn what_events_core_has_otherwise_is_written_again() {
    let database = backfilled("repair_core_different");
    let events = some_events(&database, "1", 2);
    change(&database, "events_core", "'other' AS output", &events);
    assert_mended(&repair(&database).arg("--optimize"), 2);
    assert_equal(&database);
    assert_each_once(&database);
}

#[test]
fn other_experiment_columns_are_written_again() {
    let database = backfilled("repair_experiments");
    let events = some_events(&database, "experiment_id != ''", 3);
    change(
        &database,
        "events_full",
        "'other' AS experiment_name",
        &events,
    );
    let report = assert_mended(&repair(&database).arg("--optimize"), 3);
    assert_eq!(report["found"]["different_experiments"], 3);
    assert_equal(&database);
    assert_each_once(&database);
}

#[test]
fn what_stands_more_than_once_is_merged_where_that_is_wanted() {
    let database = backfilled("repair_doubled");
    merges(&database, "STOP");
    let events = some_events(&database, "1", 9);
    execute(
        &database,
        &format!("INSERT INTO events_full SELECT * FROM events_full WHERE {events}"),
    );
    merges(&database, "START");
    let found = ask_number(&database, "SELECT count() FROM events_full");
    let tool = repair(&database);
    // Merges may have begun by themselves.
    if ask_number(
        &database,
        "SELECT count() FROM system.parts WHERE active AND table = 'events_full' AND database = currentDatabase()",
    ) > 1
    {
        tool.run()
            .assert_one_error(1, &["unmerged duplicates", "--optimize"]);
        assert_eq!(
            ask_number(&database, "SELECT count() FROM events_full"),
            found
        );
    }
    let report = assert_mended(&repair(&database).arg("--optimize"), 0);
    assert_eq!(report["optimized"].as_array().unwrap().len(), 2);
    assert_each_once(&database);
    assert_equal(&database);
}

#[test]
fn what_cannot_be_mended_is_said_and_left() {
    let database = backfilled("repair_extra");
    let one = some_events(&database, OF_OBSERVATION, 1);
    let nobody = "'nobody' AS span_id, 'nobody' AS trace_id";
    change(&database, "events_full", nobody, &one);
    delete(
        &database,
        &BOTH,
        &some_events(&database, &format!("{OF_TRACE} AND NOT ({one})"), 2),
    );
    let tool = repair(&database);
    tool.run().assert_one_error(1, &["1 extra", "by hand"]);
    let report = tool.report();
    assert_eq!(report["rows_written"], 2, "{report:#}");
    assert_eq!(
        ask_number(
            &database,
            "SELECT count() FROM events_full WHERE span_id = 'nobody'"
        ),
        1
    );
}

#[test]
fn a_second_root_is_said_and_left() {
    let database = backfilled("repair_second_root");
    let one = some_events(&database, OF_TRACE, 1);
    let live = "'live-root' AS span_id, 'otel' AS source, '' AS parent_span_id";
    change(&database, "events_full", live, &one);
    repair(&database)
        .run()
        .assert_one_error(1, &["1 with a second root span", "by hand"]);
}

#[test]
fn a_dry_run_says_what_there_is_to_write_and_writes_nothing() {
    let database = backfilled("repair_dry");
    delete(&database, &BOTH, &some_events(&database, OF_OBSERVATION, 4));
    let rows = ask_number(&database, "SELECT count() FROM events_full");
    let tool = repair(&database).arg("--dry-run");
    let outcome = tool.run();
    outcome.assert_code(0);
    outcome.assert_stderr_contains("dry run, which writes nothing: 4 rows to write in ");
    assert!(!outcome.stderr.contains("missing only in"), "{outcome:?}");
    assert!(outcome.stdout.contains("Dry run "), "{}", outcome.stdout);
    assert!(!outcome.stdout.contains("stale"), "{}", outcome.stdout);
    assert!(!outcome.stdout.contains("Left"), "{}", outcome.stdout);
    assert_eq!(tool.report()["rows_wanted"], 4);
    assert_eq!(
        ask_number(&database, "SELECT count() FROM events_full"),
        rows
    );
}

#[test]
fn three_wrong_rows_cost_little() {
    let database = backfilled("repair_three");
    // Payload that nobody needs: a few kilobytes for each observation.
    execute(&database, "TRUNCATE TABLE observations");
    execute(
        &database,
        &format!(
            "INSERT INTO observations SELECT * REPLACE (randomPrintableASCII(4000) AS input) \
             FROM `{}`.observations FINAL WHERE toYYYYMM(start_time) = 202406",
            month().name
        ),
    );
    execute(&database, "OPTIMIZE TABLE observations FINAL");
    Tool::new(&database)
        .args(ALIKE)
        .arg("--restart")
        .run()
        .assert_code(0);
    merge(&database);
    delete(&database, &BOTH, &some_events(&database, OF_OBSERVATION, 3));
    assert_mended(&repair(&database), 3);
    execute(&database, "SYSTEM FLUSH LOGS");
    let of_repair = "type = 'QueryFinish' AND has(databases, currentDatabase()) \
         AND query LIKE '%PREWHERE%' AND query LIKE '%ARRAY JOIN [1] AS one%' \
         AND query NOT LIKE '%query_log%'";
    let wanted = format!("SELECT sum(read_bytes) FROM system.query_log WHERE {of_repair}");
    let payload = ask_number(
        &database,
        "SELECT sum(data_uncompressed_bytes) FROM system.parts WHERE active \
         AND database = currentDatabase() AND table = 'observations' AND partition = '202406'",
    );
    let read = ask_number(&database, &wanted);
    assert!(read > 0, "nothing was read");
    assert!(read < payload / 10, "{read} of {payload} bytes");
    let inserts = ask_number(
        &database,
        "SELECT count() FROM system.query_log WHERE type = 'QueryFinish' \
         AND query_kind = 'Insert' AND query LIKE 'INSERT INTO%events_full%FORMAT Native%' \
         AND written_rows BETWEEN 1 AND 6 AND has(databases, currentDatabase())",
    );
    assert!((1..=3).contains(&inserts), "{inserts} inserts");
    assert_equal(&database);
}
