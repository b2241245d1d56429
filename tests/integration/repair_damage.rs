//! A repair after each kind of damage that verify knows: it mends what can be mended, says what
//! cannot, and what it reads besides what verify reads stays small.

use crate::support::differential::{ask_number, execute};
use crate::support::live::{IS_LIVE, Way};
use crate::support::repair::{
    ALIKE, BOTH, OF_OBSERVATION, OF_TRACE, assert_each_once, assert_equal, backfilled, change,
    delete, merges, never_merge_by_itself, repair, run_and_count, some_events,
};
use crate::support::{Database, Tool};
use crate::support::{differential, live, repair};
use serde_json::Value;

/// What verify calls the damage, and how much of it there is.
type Found<'a> = &'a [(&'a str, u64)];

/// What a repair says of what it leaves, and a statement that an operator would give then.
struct Left<'a> {
    words: &'a [&'a str],
    by_hand: &'a [String],
}

/// Panics unless a repair finds just this damage, writes so many rows, and reads hardly more than
/// verify does; gives its report.
#[track_caller]
fn assert_repaired(database: &Database, found: Found, rows: u64, left: Option<Left>) -> Value {
    let verify = Tool::new(database)
        .arg("verify")
        .args(ALIKE)
        .env("STATE_DIR", "nowhere");
    let (outcome, of_verify) = run_and_count(database, &verify);
    outcome.assert_code(1);
    assert_found(&verify.report(), found);
    let tool = repair(database).arg("--optimize");
    let (outcome, of_repair) = run_and_count(database, &tool);
    let report = tool.report();
    let expected_code = if left.is_some() { 1 } else { 0 };
    outcome.assert_code(expected_code);
    assert_found(&report["found"], found);
    assert_eq!(report["rows_written"], rows, "{report:#}");
    let month = ask_number(
        database,
        "SELECT (SELECT count() FROM observations) + (SELECT count() FROM events_full) \
             + (SELECT count() FROM events_core)",
    );
    println!(
        "{found:?}: verify {of_verify:?}, repair {of_repair:?}, {rows} rows written, of {month}"
    );
    // Besides what verify reads, the keys of both tables of events are counted, before and after,
    // and of the rest just what is wanted.
    let more = of_repair.rows.saturating_sub(of_verify.rows);
    assert!(more < 5 * month, "{more} rows more than verify, of {month}");
    let more = of_repair.bytes.saturating_sub(of_verify.bytes);
    assert!(more < of_verify.bytes / 4, "{more} bytes more than verify");
    if let Some(left) = left {
        outcome.assert_one_error(1, left.words);
        for statement in left.by_hand {
            execute(database, statement);
        }
    }
    assert_equal(database);
    assert_each_once(database);
    report
}

/// Panics unless a report names this damage and no other.
#[track_caller]
fn assert_found(report: &Value, found: Found) {
    for kind in [
        "missing",
        "extra",
        "doubled",
        "superseded",
        "different",
        "stale",
        "different_experiments",
        "second_roots",
        "beside_live",
        "missing_in_core",
        "different_in_core",
        "extra_in_core",
        "doubled_in_full",
        "doubled_in_core",
    ] {
        let expected = found.iter().find(|found| found.0 == kind);
        let expected = expected.map_or(0, |found| found.1);
        assert_eq!(report[kind], expected, "{kind} in {report:#}");
    }
}

/// The same, where all is mended.
#[track_caller]
fn assert_mended(database: &Database, found: Found, rows: u64) {
    assert_repaired(database, found, rows, None);
}

/// The same, where the events that `condition` is true for have to be deleted by hand.
#[track_caller]
fn assert_left(database: &Database, found: Found, rows: u64, words: &[&str], condition: &str) {
    let by_hand = BOTH.map(|table| format!("DELETE FROM {table} WHERE {condition}"));
    let left = Left {
        words,
        by_hand: &by_hand,
    };
    assert_repaired(database, found, rows, Some(left));
}

/// Adds a later version of some observations, those of these events.
fn add_version(database: &Database, changes: &str, events: &str) {
    let events = events.replace("span_id", "id");
    execute(
        database,
        &format!(
            "INSERT INTO observations SELECT * REPLACE ({changes}, event_ts + INTERVAL 1 SECOND AS event_ts) \
             FROM (SELECT * FROM observations FINAL WHERE toYYYYMM(start_time) = 202406 AND {})",
            events.replace(
                "(project_id, trace_id, id)",
                "(project_id, ifNull(trace_id, ''), id)"
            )
        ),
    );
}

/// Events that are the only ones of their span, and begin on the tenth of the month.
fn events_of_a_day(database: &Database, number: u64) -> String {
    some_events(
        database,
        &format!("{OF_OBSERVATION} AND toDate(start_time) = '2024-06-10' AND experiment_id = ''"),
        number,
    )
}

#[test]
fn events_of_observations_that_are_missing() {
    let database = backfilled("damage_missing");
    delete(&database, &BOTH, &some_events(&database, OF_OBSERVATION, 7));
    assert_mended(&database, &[("missing", 7)], 7);
}

#[test]
fn root_spans_that_are_missing() {
    let database = backfilled("damage_missing_roots");
    delete(&database, &BOTH, &some_events(&database, OF_TRACE, 5));
    assert_mended(&database, &[("missing", 5)], 5);
}

#[test]
fn a_whole_day_that_is_missing() {
    let database = backfilled("damage_missing_day");
    let of_day = "toDate(start_time) = '2024-06-10'";
    let all = ask_number(
        &database,
        &format!("SELECT count() FROM events_full WHERE {of_day}"),
    );
    delete(&database, &BOTH, of_day);
    assert_mended(&database, &[("missing", all)], all);
}

#[test]
fn events_that_differ_from_their_observation() {
    let database = backfilled("damage_different");
    let events = some_events(&database, &format!("{OF_OBSERVATION} AND name != ''"), 3);
    change(&database, "events_full", "'other' AS name", &events);
    assert_mended(&database, &[("different", 3)], 3);
}

#[test]
fn root_spans_that_differ_from_their_trace() {
    let database = backfilled("damage_different_roots");
    let events = some_events(&database, OF_TRACE, 3);
    change(&database, "events_full", "'other' AS input", &events);
    assert_mended(&database, &[("different", 3)], 3);
}

#[test]
fn events_that_have_something_old_of_their_trace() {
    let database = backfilled("damage_stale");
    let events = some_events(&database, "user_id != ''", 4);
    change(&database, "events_full", "'other' AS user_id", &events);
    assert_mended(&database, &[("stale", 4)], 4);
}

#[test]
fn events_that_say_something_else_of_experiments() {
    let database = backfilled("damage_experiments");
    let events = some_events(&database, "experiment_id != ''", 3);
    change(
        &database,
        "events_full",
        "'other' AS experiment_name",
        &events,
    );
    assert_mended(&database, &[("different_experiments", 3)], 3);
}

#[test]
fn an_observation_that_has_another_type_by_now() {
    let database = backfilled("damage_type");
    let events = events_of_a_day(&database, 2);
    let type_now = "if(type = 'EVENT', 'SPAN', 'EVENT') AS type";
    add_version(&database, type_now, &events);
    assert_mended(&database, &[("different", 2)], 2);
}

#[test]
fn events_of_versions_that_do_not_count() {
    for (name, later, missing) in [
        ("time", "INTERVAL 1 SECOND", 2),
        ("day", "INTERVAL 1 DAY", 2),
        ("month", "INTERVAL 1 MONTH", 0),
    ] {
        let database = backfilled(&format!("damage_superseded_{name}"));
        let events = events_of_a_day(&database, 2);
        let later = format!("start_time + {later} AS start_time");
        execute(&database, "CREATE TABLE old AS events_full ENGINE = Memory");
        execute(
            &database,
            &format!("INSERT INTO old SELECT * FROM events_full WHERE {events}"),
        );
        add_version(&database, &later, &events);
        let found = [("superseded", 2), ("missing", missing)];
        let old = "(project_id, trace_id, span_id, start_time) IN \
             (SELECT project_id, trace_id, span_id, start_time FROM old)";
        let words = ["2 superseded", "by hand"];
        assert_left(&database, &found, missing, &words, old);
    }
}

#[test]
fn events_of_observations_that_were_deleted_with_another_type() {
    let database = backfilled("damage_deleted");
    let events = events_of_a_day(&database, 2);
    let deleted = "if(type = 'EVENT', 'SPAN', 'EVENT') AS type, 1 AS is_deleted";
    add_version(&database, deleted, &events);
    let words = ["2 superseded", "by hand"];
    assert_left(&database, &[("superseded", 2)], 0, &words, &events);
}

#[test]
fn a_second_event_of_an_observation_at_another_time() {
    let database = backfilled("damage_doubled");
    let events = events_of_a_day(&database, 2);
    let another = "start_time + INTERVAL 1 SECOND AS start_time";
    execute(
        &database,
        "CREATE TABLE right_ones AS events_full ENGINE = Memory",
    );
    execute(
        &database,
        &format!("INSERT INTO right_ones SELECT * FROM events_full WHERE {events}"),
    );
    change(&database, "events_full", another, &events);
    let second = format!(
        "{events} AND (project_id, trace_id, span_id, start_time) NOT IN \
         (SELECT project_id, trace_id, span_id, start_time FROM right_ones)"
    );
    let words = ["2 doubled", "by hand"];
    assert_left(&database, &[("doubled", 2)], 0, &words, &second);
}

#[test]
fn an_event_beside_a_live_one_of_its_span() {
    let database = backfilled("damage_beside_live");
    let events = events_of_a_day(&database, 2);
    let live = "start_time + INTERVAL 5 MICROSECOND AS start_time, 'otel' AS source";
    change(&database, "events_full", live, &events);
    // By their observations, they are the ones that start at a wrong time.
    let live = format!("{events} AND source = 'otel'");
    let words = ["2 beside live rows", "by hand"];
    assert_left(&database, &[("beside_live", 2)], 0, &words, &live);
}

#[test]
fn a_root_span_beside_a_live_one() {
    let database = backfilled("damage_second_root");
    let events = some_events(&database, OF_TRACE, 2);
    let live = "concat('live-', span_id) AS span_id, 'otel' AS source, '' AS parent_span_id";
    change(&database, "events_full", live, &events);
    let words = ["2 with a second root span", "by hand"];
    assert_left(&database, &[("second_roots", 2)], 0, &words, &events);
}

#[test]
fn an_event_without_an_observation() {
    let database = backfilled("damage_extra");
    let events = events_of_a_day(&database, 2);
    let nobody = "concat('nobody-', span_id) AS span_id";
    change(&database, "events_full", nobody, &events);
    let words = ["2 extra", "by hand"];
    let of_nobody = "startsWith(span_id, 'nobody-')";
    assert_left(&database, &[("extra", 2)], 0, &words, of_nobody);
}

#[test]
fn events_that_only_events_core_lacks() {
    let database = backfilled("damage_core_missing");
    delete(&database, &["events_core"], &some_events(&database, "1", 6));
    assert_mended(&database, &[("missing_in_core", 6)], 0);
}

#[test]
fn events_that_only_events_full_lacks() {
    let database = backfilled("damage_full_missing");
    delete(&database, &["events_full"], &some_events(&database, "1", 6));
    // What events_core has of them is right.
    assert_mended(&database, &[("missing", 6)], 6);
}

#[test]
fn root_spans_that_only_events_core_lacks() {
    let database = backfilled("damage_core_roots");
    let events = some_events(&database, OF_TRACE, 4);
    delete(&database, &["events_core"], &events);
    assert_mended(&database, &[("missing_in_core", 4)], 0);
}

#[test]
fn events_that_events_core_has_otherwise() {
    for (name, of) in [("observations", OF_OBSERVATION), ("roots", OF_TRACE)] {
        let database = backfilled(&format!("damage_core_different_{name}"));
        let events = some_events(&database, of, 2);
        change(&database, "events_core", "'other' AS output", &events);
        assert_mended(&database, &[("different_in_core", 2)], 2);
    }
}

/// They are no root span that a trace makes.
#[test]
fn events_of_observations_that_are_called_as_root_spans() {
    let called_so = "(project_id, trace_id, span_id) IN \
                     (SELECT project_id, trace_id, id FROM observations WHERE id = concat('t-', trace_id))";
    for (name, table, kind) in [
        ("core", "events_core", "different_in_core"),
        ("full", "events_full", "different"),
    ] {
        let database = backfilled(&format!("damage_called_as_roots_{name}"));
        let events = some_events(&database, called_so, 3);
        change(&database, table, "'other' AS output", &events);
        assert_mended(&database, &[(kind, 3)], 3);
    }
    let database = backfilled("damage_called_as_roots_experiments");
    let condition = format!("{called_so} AND experiment_id != ''");
    let events = some_events(&database, &condition, 1);
    change(
        &database,
        "events_full",
        "'other' AS experiment_name",
        &events,
    );
    assert_mended(&database, &[("different_experiments", 1)], 1);
}

#[test]
fn events_that_only_events_core_has() {
    let database = backfilled("damage_core_extra");
    let events = events_of_a_day(&database, 2);
    let nobody = "concat('nobody-', span_id) AS span_id";
    change(&database, "events_core", nobody, &events);
    let words = ["2 only in events_core", "by hand"];
    let of_nobody = "startsWith(span_id, 'nobody-')";
    assert_left(&database, &[("extra_in_core", 2)], 0, &words, of_nobody);
}

#[test]
fn rows_that_stand_twice_in_either_table() {
    let database = backfilled("damage_twice");
    merges(&database, "STOP");
    let events = some_events(&database, "1", 9);
    let again = |table: &str| {
        let sql = format!("INSERT INTO {table} SELECT * FROM {table} WHERE {events}");
        execute(&database, &sql);
    };
    again("events_core");
    again("events_full");
    never_merge_by_itself(&database);
    merges(&database, "START");
    let found = [("doubled_in_full", 9), ("doubled_in_core", 18)];
    assert_mended(&database, &found, 0);
}

#[test]
fn everything_at_once() {
    let database = backfilled("damage_all");
    let classes = |of: &str, class: u64| {
        format!("{of} AND experiment_id = '' AND cityHash64(span_id, 'class') % 8 = {class}")
    };
    let events = |of: &str, class: u64| some_events(&database, &classes(of, class), 3);
    let (missing, stale) = (events(OF_OBSERVATION, 0), events(OF_TRACE, 1));
    let (different, core) = (events(OF_OBSERVATION, 2), events(OF_OBSERVATION, 3));
    let (extra, only_core) = (events(OF_OBSERVATION, 4), events(OF_OBSERVATION, 5));
    delete(&database, &BOTH, &missing);
    delete(&database, &["events_core"], &core);
    change(&database, "events_full", "'other' AS user_id", &stale);
    change(&database, "events_full", "'other' AS output", &different);
    let nobody = "concat('nobody-', span_id) AS span_id";
    change(&database, "events_full", nobody, &extra);
    change(&database, "events_core", nobody, &only_core);
    let found = [
        ("missing", 3),
        ("stale", 3),
        ("different", 3),
        ("extra", 3),
        ("missing_in_core", 3),
        ("extra_in_core", 3),
    ];
    let words = ["3 extra, 3 only in events_core", "by hand"];
    let of_nobody = "startsWith(span_id, 'nobody-')";
    assert_left(&database, &found, 9, &words, of_nobody);
}

#[test]
fn what_is_damaged_in_a_month_with_many_live_rows() {
    let database = backfilled("damage_alive");
    live::create_table(&database, "history");
    let columns = live::insertable_columns(&database);
    execute(
        &database,
        &format!("INSERT INTO history ({columns}) SELECT {columns} FROM events_full"),
    );
    live::create_table(&database, "live");
    for (way, class) in [(Way::Staging, 0), (Way::Direct, 1)] {
        // A trace that comes by the direct path has no observation with the id of a root span.
        let of_class = format!(
            "trace_id != '' AND cityHash64(project_id, trace_id) % 4 = {class} \
             AND (project_id, trace_id) NOT IN (SELECT project_id, ifNull(trace_id, '') \
             FROM observations WHERE id = concat('t-', trace_id))"
        );
        live::add(&database, "live", way, &of_class);
    }
    for table in BOTH {
        execute(&database, &format!("TRUNCATE TABLE {table}"));
    }
    live::write(&database, "live");
    live::fill_wanted(&database, "live", "now64(6)", "wanted");
    Tool::new(&database).args(ALIKE).run().assert_code(0);
    repair::merge(&database);
    differential::assert_equal(&database, "wanted", "events_full");
    let lives = ask_number(
        &database,
        &format!("SELECT count() FROM events_full WHERE {IS_LIVE}"),
    );
    assert!(lives > 3_000, "{lives} live rows");

    let ours = |of: &str, class: u64| {
        let condition = format!(
            "{of} AND NOT ({IS_LIVE}) AND experiment_id = '' AND cityHash64(span_id, 'class') % 4 = {class}"
        );
        some_events(&database, &condition, 4)
    };
    delete(&database, &BOTH, &ours(OF_OBSERVATION, 0));
    delete(&database, &BOTH, &ours(OF_TRACE, 0));
    let stale = ours(OF_OBSERVATION, 1);
    change(&database, "events_full", "'other' AS user_id", &stale);
    let older = "event_ts < now() - INTERVAL 2 HOUR";
    for condition in [
        format!("{IS_LIVE} AND {older}"),
        // That it is not there yet is nothing that is wrong.
        format!("{IS_LIVE} AND NOT ({older})"),
    ] {
        let live_ones = some_events(&database, &condition, 5);
        delete(&database, &["events_core"], &live_ones);
    }
    let found = [("missing", 8), ("stale", 4), ("missing_in_core", 5)];
    assert_mended(&database, &found, 12);
    differential::assert_equal(&database, "wanted", "events_full");
}
