//! Every trace is found, in whatever month it lies; and each that is not is asked for once.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use crate::support::differential::{
    Specification, ask, ask_number, assert_equal, execute, keep_versions_apart,
};
use crate::support::{Database, SAMPLE_PARTITION, Server, Tool};

/// Traces, as `(project, id, timestamp, version, is deleted)`.
const TRACES: &[(&str, &str, &str, u32, bool)] = &[
    ("one", "here", "2024-06-10 12:00:00", 1, false),
    ("one", "the evening before", "2024-05-31 23:59:59", 1, false),
    ("one", "the morning after", "2024-07-01 00:00:01", 1, false),
    ("one", "three days before", "2024-05-29 10:00:00", 1, false),
    ("one", "long before", "2023-01-15 10:00:00", 1, false),
    (
        "one",
        "0af7651916cd43dd8448eb211c80319c",
        "2023-02-15 10:00:00",
        1,
        false,
    ),
    (
        "one",
        "0af76519-16cd-43dd-8448-eb211c80319c",
        "2023-02-16 10:00:00",
        1,
        false,
    ),
    ("one", "long \\' after\\\\", "2025-11-02 10:00:00", 1, false),
    ("one", "twice, long before", "2023-03-01 10:00:00", 1, false),
    ("one", "twice, long before", "2023-03-01 11:00:00", 2, false),
    (
        "one",
        "in two months, long before",
        "2023-03-01 10:00:00",
        2,
        false,
    ),
    (
        "one",
        "in two months, long before",
        "2023-04-01 10:00:00",
        1,
        false,
    ),
    (
        "one",
        "deleted long before",
        "2023-03-01 10:00:00",
        1,
        false,
    ),
    ("one", "deleted long before", "2023-03-01 10:00:00", 2, true),
    ("one", "moved away", "2024-06-10 12:00:00", 1, false),
    ("one", "moved away", "2023-05-10 12:00:00", 2, false),
    ("one", "moved here", "2023-05-10 12:00:00", 1, false),
    ("one", "moved here", "2024-06-10 12:00:00", 2, false),
    (
        "one",
        "moved away and deleted",
        "2024-06-10 12:00:00",
        1,
        false,
    ),
    (
        "one",
        "moved away and deleted",
        "2023-05-10 12:00:00",
        2,
        true,
    ),
    (
        "one",
        "deleted here, back elsewhere",
        "2024-06-10 12:00:00",
        1,
        true,
    ),
    (
        "one",
        "deleted here, back elsewhere",
        "2023-05-10 12:00:00",
        2,
        false,
    ),
    ("two", "long before", "2023-07-15 10:00:00", 1, false),
    ("two", "of another project", "2023-07-15 10:00:00", 1, false),
];

/// Traces that observations name and that are not there.
const NOWHERE: u64 = 3;

/// Observations of one month for all these traces, and for some that are not there.
fn history(name: &str) -> Database<'static> {
    let database = Server::shared().database(name);
    database.load_schema();
    keep_versions_apart(&database, &["traces", "observations", "events_full"]);
    for (project, id, timestamp, version, is_deleted) in TRACES {
        execute(
            &database,
            &format!(
                "INSERT INTO traces (project_id, id, timestamp, name, user_id, tags, metadata, \
                     event_ts, is_deleted)
                 VALUES ('{project}', '{id}', '{timestamp}', 'version {version}', \
                     'user of {project}', ['{version}'], map('since', '{timestamp}'), \
                     {version}, {is_deleted})"
            ),
        );
    }
    for number in 0..NOWHERE {
        observe(&database, "one", &format!("nowhere {number}"));
    }
    observe(&database, "one", "of another project");
    observe(&database, "one", "");
    // Each once, however many versions its trace has: two rows of an observation with one `event_ts`
    // and different moments of creation are a tie, and nobody can say which of them counts.
    let traces: BTreeSet<_> = TRACES
        .iter()
        .map(|(project, id, ..)| (project, id))
        .collect();
    for (project, id) in traces {
        observe(&database, project, id);
    }
    Specification::current().fill(&database, SAMPLE_PARTITION, "events_full", "expected");
    database
}

/// Three observations of a trace, of two types, at the beginning and at the end of the month.
fn observe(database: &Database, project: &str, trace: &str) {
    execute(
        database,
        &format!(
            "INSERT INTO observations (id, trace_id, project_id, type, start_time, input, event_ts)
             SELECT concat('{trace} ', toString(number)), '{trace}', '{project}',
                 ['SPAN', 'GENERATION', 'SPAN'][1 + number], toDateTime64([
                     '2024-06-01 00:00:03', '2024-06-10 12:00:00', '2024-06-30 23:59:58'
                 ][1 + number], 3), 'input', 1
             FROM numbers(3)"
        ),
    );
}

fn tool(database: &Database) -> Tool {
    Tool::new(database).args(["--partition", SAMPLE_PARTITION])
}

#[test]
fn a_trace_is_found_in_whatever_month_it_lies() {
    let database = history("whatever_month");
    let tool = tool(&database);
    tool.run().assert_code(0);
    assert_equal(&database, "expected", "events_full");
    let report = tool.report();
    // Those on the days around the month are loaded; those that moved are not missing.
    assert_eq!(report["traces_remote"], 9, "{report}");
    // And one that is deleted, and one that is another project's.
    assert_eq!(report["traces_not_found"], NOWHERE + 2, "{report}");
    let listed = report["traces_not_found_listed"].as_array().unwrap();
    let listed: Vec<_> = listed
        .iter()
        .map(|id| id["trace_id"].as_str().unwrap())
        .collect();
    for id in [
        "nowhere 0",
        "nowhere 1",
        "nowhere 2",
        "of another project",
        "deleted long before",
    ] {
        assert!(listed.contains(&id), "{id} is not in {listed:?}");
    }
}

#[test]
fn all_compressions_and_sizes_of_blocks_give_the_same() {
    let database = history("sizes");
    for (number, (compression, block_rows)) in [("lz4", "1"), ("none", "2"), ("none", "7")]
        .into_iter()
        .enumerate()
    {
        let target = format!("events_{number}");
        execute(&database, &format!("CREATE TABLE {target} AS events_full"));
        let tool = tool(&database)
            .args(["--target-table", &target, "--compression", compression])
            .env("STREAM_BLOCK_SIZE", block_rows);
        tool.run().assert_code(0);
        assert_equal(&database, "expected", &target);
    }
}

#[test]
fn without_the_remote_lookup_only_the_days_around_the_month_are_known() {
    let database = history("no_remote_lookup");
    let known = |arguments: &[&str]| {
        execute(&database, "TRUNCATE TABLE events_full");
        let tool = tool(&database)
            .args(arguments.iter().copied())
            .arg("--restart");
        tool.run().assert_code(0);
        assert_eq!(tool.report()["traces_not_found"], 0);
        ask(
            &database,
            "SELECT arraySort(groupUniqArray(trace_id)) FROM events_full \
             WHERE user_id != '' AND trace_id LIKE '%the%' OR trace_id LIKE '%days%' AND user_id != ''",
        )
    };
    assert_eq!(
        known(&["--no-remote-lookup", "--trace-margin-days", "0"]),
        "[]"
    );
    assert_eq!(
        known(&["--no-remote-lookup"]),
        "['the evening before','the morning after']"
    );
    assert_eq!(
        known(&["--no-remote-lookup", "--trace-margin-days", "3"]),
        "['the evening before','the morning after','three days before']"
    );
}

/// Two months: a quarter of the second one's observations belong to traces of the first.
fn two_months(name: &str, observations: u64) -> Database<'static> {
    let database = Server::shared().database(name);
    database.load_schema();
    database.load_month("2024-04-01", observations);
    database.load_sample_month(observations);
    execute(
        &database,
        "INSERT INTO observations SELECT * REPLACE (concat(id, ' later') AS id, \
             addDays(start_time, 61) AS start_time) \
         FROM observations FINAL WHERE toYYYYMM(observations.start_time) = 202404 \
             AND toYYYYMM(addDays(observations.start_time, 61)) = 202406 \
             AND cityHash64(observations.id) % 4 = 0",
    );
    execute(&database, "OPTIMIZE TABLE observations FINAL");
    Specification::current().fill(&database, SAMPLE_PARTITION, "events_full", "expected");
    database
}

#[test]
fn each_trace_that_is_missing_is_asked_for_once() {
    let database = two_months("asked_once", 30_000);
    keep_versions_apart(&database, &["events_full"]);
    let tool = tool(&database).args(["--segment-rows", "1000"]);
    tool.run().assert_code(0);
    assert_equal(&database, "expected", "events_full");
    let missing = ask_number(
        &database,
        "SELECT uniqExact(project_id, trace_id) FROM observations FINAL \
         WHERE _partition_id = '202406' AND trace_id != '' AND (project_id, trace_id) NOT IN \
             (SELECT project_id, id FROM traces \
              WHERE toDate(timestamp) BETWEEN '2024-05-31' AND '2024-07-01')",
    );
    let report = tool.report();
    let number = |field: &str| report[field].as_u64().unwrap();
    assert_eq!(
        number("traces_remote") + number("traces_not_found"),
        missing
    );
    assert!(number("traces_remote") > 100, "{report}");
    execute(&database, "SYSTEM FLUSH LOGS query_log");
    let questions = ask_number(
        &database,
        &format!(
            "SELECT count() FROM system.query_log WHERE type = 'QueryFinish' \
             AND query LIKE '%{}%WHERE t.project_id IN (%' \
             AND query NOT LIKE '%query_log%'",
            database.name
        ),
    );
    assert!(
        (1..=2).contains(&questions),
        "{questions} questions for {missing} traces"
    );
}

#[test]
fn a_run_killed_while_observations_wait_ends_as_if_it_had_not_been() {
    let database = two_months("killed_elsewhere", 60_000);
    let tool = tool(&database).args(["--segment-rows", "1000", "--batch-size", "2000"]);
    let checkpoint = tool.state_dir().join(SAMPLE_PARTITION).join("checkpoint");
    let tool = tool.run_with_kills(12, &checkpoint);
    let outcome = tool.without_arg("--resume").arg("--resume").run();
    outcome.assert_code(0);
    execute(&database, "OPTIMIZE TABLE events_full FINAL");
    assert_equal(&database, "expected", "events_full");
}

#[test]
fn a_damaged_file_of_waiting_observations_is_noticed() {
    let database = two_months("damaged_late", 60_000);
    let tool = tool(&database).args(["--segment-rows", "1000", "--concurrency", "1"]);
    let mut run = tool.spawn();
    let directory = tool.state_dir().join(SAMPLE_PARTITION).join("deferred");
    let file = loop {
        assert!(run.is_running(), "the run ended before anything waited");
        let files = std::fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten();
        let mut files = files.map(|file| file.path());
        if let Some(file) = files.find(|file| file.extension().is_some_and(|e| e == "native")) {
            break file;
        }
        thread::sleep(Duration::from_millis(2));
    };
    // Not killed at once: the checkpoint must know of the file.
    thread::sleep(Duration::from_millis(300));
    run.kill();
    run.wait();
    if !file.exists() {
        println!("the run was faster");
        return;
    }
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    let outcome = tool.arg("--resume").run();
    outcome.assert_one_error(1, &["deferred", "--restart"]);
}
