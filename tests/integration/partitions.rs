//! Several partitions with one command: the newest first, each with its own state, and what fails
//! in one is told and changes nothing in the others.

use std::fs;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::differential::{
    Specification, ask, ask_number, assert_complete, execute, keep_versions_apart,
};
use crate::support::{Database, Outcome, Running, Server, Tool, repository_file};
use clap::Parser;
use events_backfill::internals::{
    Arguments, Environment, Error, Looked, Options, Request, Session, each_partition,
};
use serde_json::Value;

/// The months that there are, the newest first.
const MONTHS: [&str; 3] = ["202407", "202406", "202405"];

/// Observations of each month: enough for every oddity, and for several batches.
const OBSERVATIONS: u64 = 22_000;

/// Sources that nobody changes, and the table `expected`.
fn months() -> &'static Database<'static> {
    static DATABASE: OnceLock<Database<'static>> = OnceLock::new();
    DATABASE.get_or_init(|| {
        let database = Server::shared().database("months");
        database.load_schema();
        for first_day in ["2024-05-01", "2024-06-01", "2024-07-01"] {
            database.load_month(first_day, OBSERVATIONS);
        }
        // Few parts, so that segments may be short.
        execute(&database, "OPTIMIZE TABLE observations FINAL");
        execute(
            &database,
            "CREATE TABLE expected AS events_full ENGINE = Memory",
        );
        for month in MONTHS {
            let expected = format!("expected_{month}");
            Specification::current().fill(&database, month, "events_full", &expected);
            copy(&database, &expected, "expected");
        }
        database
    })
}

/// Inserts what one table of events holds into another.
fn copy(database: &Database, from: &str, into: &str) {
    let columns = "SELECT arrayStringConcat(groupArray(name), ', ') FROM system.columns \
                   WHERE database = currentDatabase() AND table = 'events_full' \
                   AND default_kind NOT IN ('MATERIALIZED', 'ALIAS')";
    let columns = ask(database, columns);
    execute(
        database,
        &format!("INSERT INTO {into} ({columns}) SELECT {columns} FROM {from}"),
    );
}

/// The program with a new target of that name, in small batches.
fn tool(target: &str) -> Tool {
    let database = months();
    execute(database, &format!("CREATE TABLE {target} AS events_full"));
    keep_versions_apart(database, &[target]);
    Tool::new(database).args(["--target-table", target]).args([
        "--concurrency",
        "1",
        "--batch-size",
        "2000",
    ])
}

/// The same for all that there are.
fn tool_for_all(target: &str) -> Tool {
    tool(target).arg("--all-partitions")
}

fn rows(target: &str, month: &str) -> u64 {
    let sql = format!("SELECT count() FROM {target} WHERE _partition_id = '{month}'");
    ask_number(months(), &sql)
}

fn all_rows(target: &str) -> u64 {
    MONTHS.iter().map(|month| rows(target, month)).sum()
}

fn expected_rows(month: &str) -> u64 {
    ask_number(months(), &format!("SELECT count() FROM expected_{month}"))
}

/// Months and states of a report, in its order.
fn states(report: &Value) -> Vec<(&str, &str)> {
    let partitions = report["partitions"].as_array().expect("it is an array");
    partitions
        .iter()
        .map(|partition| {
            let field = |name: &str| partition[name].as_str().expect("it is text");
            (field("partition"), field("state"))
        })
        .collect()
}

/// Waits until rows of a month have arrived.
fn wait_for_rows(run: &mut Running, target: &str, month: &str) {
    let started = Instant::now();
    while rows(target, month) == 0 {
        assert!(run.is_running(), "the run ended before {month}");
        assert!(started.elapsed() < Duration::from_secs(120));
        thread::sleep(Duration::from_millis(5));
    }
}

/// Lets the server refuse all rows of June.
fn refuse_june(target: &str) {
    let rule = "ADD CONSTRAINT not_june CHECK toYYYYMM(start_time) != 202406";
    execute(months(), &format!("ALTER TABLE {target} {rule}"));
}

fn allow_june(target: &str) {
    execute(
        months(),
        &format!("ALTER TABLE {target} DROP CONSTRAINT not_june"),
    );
}

/// The order in which partitions came to be worked on, as the lines tell.
fn begun(outcome: &Outcome) -> Vec<&str> {
    let lines = outcome.stderr.lines();
    lines
        .filter(|line| line.starts_with("ClickHouse "))
        .filter_map(|line| {
            let (_, rest) = line.split_once("partition ")?;
            rest.get(..6)
        })
        .collect()
}

#[test]
fn all_partitions_become_what_the_specification_says_the_newest_first() {
    let tool = tool_for_all("whole");
    let outcome = tool.run();
    outcome.assert_code(0);
    assert_eq!(begun(&outcome), MONTHS);
    assert_complete(months(), "whole");

    let report = tool.report();
    assert_eq!(
        states(&report),
        MONTHS.map(|month| (month, "done")),
        "{report}"
    );
    let totals = &report["totals"];
    assert_eq!(totals["done"], 3);
    for field in [
        "traces_loaded",
        "observations_processed",
        "events_inserted",
        "observations_without_trace",
    ] {
        let partitions = report["partitions"].as_array().unwrap();
        let sum: u64 = partitions.iter().map(|p| p[field].as_u64().unwrap()).sum();
        assert_eq!(totals[field], sum, "{field}");
    }
    for (partition, month) in report["partitions"].as_array().unwrap().iter().zip(MONTHS) {
        assert_eq!(partition["events_inserted"], expected_rows(month));
        assert_eq!(partition["error"], Value::Null);
        // Besides, each has the report that it would have by itself.
        let own = fs::read(tool.state_dir().join(month).join("report.json")).unwrap();
        let mut own: Value = serde_json::from_slice(&own).unwrap();
        own["state"] = "done".into();
        own["error"] = Value::Null;
        assert_eq!(own, *partition);
    }
    let events = totals["events_inserted"].as_u64().unwrap();
    assert_eq!(events, all_rows("whole"));

    // The summary says the same.
    let table: Vec<&str> = outcome.stdout.trim_start().lines().take(4).collect();
    assert!(table[0].starts_with("Partition"), "{}", outcome.stdout);
    for (line, month) in table[1..].iter().zip(MONTHS) {
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(cells[..2], [month, "done"]);
        assert_eq!(cells[4].replace(',', ""), expected_rows(month).to_string());
    }
    assert!(outcome.stdout.contains("3: 3 done"));

    // Lines of progress say which partition they are about, and how far all are.
    let mut lines = outcome.stderr.lines();
    let last = lines
        .rfind(|line| line.starts_with("partition 3 of 3 (202405): observations processed: "))
        .unwrap_or_else(|| panic!("{}", outcome.stderr));
    assert!(last.contains("total: "), "{last}");
    assert!(last.contains("(100 %)"), "{last}");
    // What is the same for all is said once.
    assert_eq!(outcome.stderr.matches("left at their defaults").count(), 1);
    let columns = outcome
        .stderr
        .lines()
        .find(|line| {
            line.contains(
                " have no source in observations or traces and are left at their defaults: ",
            )
        })
        .unwrap_or_else(|| panic!("{}", outcome.stderr));
    assert!(columns.contains(" columns of whole "), "{columns}");
    assert!(columns.ends_with(" more"), "{columns}");

    // What is finished stays finished, with and without --resume.
    let outcome = tool.run();
    outcome.assert_code(0);
    assert_eq!(outcome.stderr.matches("was finished").count(), 3);
    let report = tool.report();
    let finished = MONTHS.map(|month| (month, "already_finished"));
    assert_eq!(states(&report), finished);
    assert_eq!(report["totals"]["events_inserted"], events);
    let tool = tool.arg("--resume");
    tool.run().assert_code(0);
    assert_eq!(all_rows("whole"), events);
    // Skipping what was made for something else would go unnoticed.
    let tool = tool.arg("--no-trace-metadata");
    let words = ["202407", "--no-trace-metadata", "is finished"];
    tool.run().assert_one_error(2, &words);
    assert_eq!(all_rows("whole"), events);
}

#[test]
fn a_list_in_any_order_and_a_range_are_done_newest_first_and_gaps_are_told() {
    let tool = tool("some")
        .args(["--partition", "202405,202407", "--dry-run"])
        .args(["--partition", "202407..202410"]);
    let outcome = tool.run();
    outcome
        .assert_code(0)
        .assert_stderr_contains("202408..202410");
    assert_eq!(begun(&outcome), ["202407", "202405"]);
    assert!(outcome.stdout.contains("202408..202410"));
    assert!(outcome.stdout.contains("nothing was inserted"));
    let report = tool.report();
    assert_eq!(states(&report), [("202407", "done"), ("202405", "done")]);
    let gaps = ["202410", "202409", "202408"].map(Value::from);
    assert_eq!(report["months_without_rows"], Value::from(gaps.to_vec()));
    assert_eq!(report["totals"]["dry_run"], true);
    assert_eq!(all_rows("some"), 0);
    // A dry run leaves nothing behind.
    assert_eq!(fs::read_dir(tool.state_dir()).unwrap().count(), 0);
}

#[test]
fn a_month_that_is_named_and_not_there_is_an_error_before_anything_is_written() {
    let tool = tool("named").args(["--partition", "202407,202401,202405,202312"]);
    let words = ["202312, 202401", "202405, 202406, 202407"];
    tool.run().assert_one_error(2, &words);
    assert!(!tool.state_dir().exists());
    assert_eq!(all_rows("named"), 0);
    // So is a range in which there is nothing.
    let tool = Tool::new(months()).args(["--partition", "202301..202304"]);
    tool.run().assert_one_error(2, &["202301", "202405"]);
}

#[test]
fn selections_that_contradict_each_other_or_are_not_understood_are_usage_errors() {
    for (arguments, word) in [
        (
            &["--all-partitions", "--partition", "202406"][..],
            "--all-partitions",
        ),
        (&["--partition", "202407..202405"], "202405..202407"),
        (&["--partition", "202405,"], "is not a month"),
        (&["--partition", "202405.."], "no end"),
    ] {
        let outcome = Tool::new(months()).args(arguments.iter().copied()).run();
        outcome.assert_code(2).assert_stderr_contains(word);
    }
    let tool = Tool::new(months())
        .env("PARTITION", "202406")
        .env("ALL_PARTITIONS", "true");
    tool.run()
        .assert_one_error(2, &["PARTITION", "ALL_PARTITIONS"]);
    // The command line decides.
    let tool = tool.args(["--dry-run", "--all-partitions"]);
    assert_eq!(begun(tool.run().assert_code(0)), MONTHS);
    let tool = tool.without_arg("--all-partitions");
    let tool = tool.args(["--partition", "202407"]);
    assert_eq!(begun(tool.run().assert_code(0)), ["202407"]);
    assert_eq!(tool.report()["partition"], "202407");
}

/// Ends a run with a signal while the second partition is in work, and resumes the run.
fn end_and_resume(target: &str, signal: i32, code: Option<i32>) {
    let tool = tool_for_all(target);
    let mut run = tool.spawn();
    wait_for_rows(&mut run, target, "202406");
    run.signal(signal);
    let outcome = run.wait();
    assert_eq!(outcome.code, code, "{}", outcome.stderr);
    assert_eq!(rows(target, "202405"), 0);
    if code.is_some() {
        let words = [
            "partition 202406",
            "--resume",
            "1 partition was not started",
        ];
        outcome.assert_one_error(143, &words);
        let report = tool.report();
        let expected = [
            ("202407", "done"),
            ("202406", "interrupted"),
            ("202405", "not_begun"),
        ];
        assert_eq!(states(&report), expected);
        assert!(outcome.stdout.contains("not started"));
    }

    // It is not begun anew by accident, and nothing is done to the one that could be begun.
    let words = ["202406", "--resume", "--restart"];
    tool.run().assert_one_error(2, &words);
    assert_eq!(rows(target, "202405"), 0);

    let tool = tool.arg("--resume");
    let outcome = tool.run();
    outcome
        .assert_code(0)
        .assert_stderr_contains("was finished")
        .assert_stderr_contains("resuming with");
    assert_eq!(begun(&outcome), ["202406", "202405"]);
    let report = tool.report();
    let expected = [
        ("202407", "already_finished"),
        ("202406", "done"),
        ("202405", "done"),
    ];
    assert_eq!(states(&report), expected);
    assert_eq!(report["partitions"][1]["resumed"], true);
    assert_eq!(report["partitions"][2]["resumed"], false);
    // The finished one was not done again.
    assert_eq!(rows(target, "202407"), expected_rows("202407"));
    assert_complete(months(), target);
}

#[test]
fn a_run_killed_in_its_second_partition_is_resumed_as_if_it_had_not_been() {
    end_and_resume("killed", 9, None);
}

#[test]
fn a_run_ended_by_a_signal_in_its_second_partition_is_resumed_as_if_it_had_not_been() {
    end_and_resume("terminated", 15, Some(143));
}

#[test]
fn a_restart_that_is_interrupted_is_resumed_as_a_restart() {
    let target = "restarted";
    let tool = tool_for_all(target);
    tool.run().assert_code(0);
    let tool = tool.arg("--restart");
    let mut run = tool.spawn();
    let started = Instant::now();
    while rows(target, "202407") == expected_rows("202407") {
        assert!(run.is_running() && started.elapsed() < Duration::from_secs(120));
        thread::sleep(Duration::from_millis(5));
    }
    run.kill();
    run.wait();
    let tool = tool.without_arg("--restart").arg("--resume");
    tool.run().assert_code(0);
    let report = tool.report();
    assert_eq!(states(&report), MONTHS.map(|month| (month, "done")));
    // Also the partitions to which the restart had not come.
    assert_eq!(rows(target, "202405"), 2 * expected_rows("202405"));
    assert_complete(months(), target);
}

#[test]
fn a_partition_that_fails_stops_the_run_and_can_be_resumed() {
    let target = "stopped";
    let tool = tool_for_all(target);
    refuse_june(target);
    let outcome = tool.run();
    let words = [
        "partition 202406",
        "not_june",
        "1 partition was not started",
    ];
    outcome.assert_one_error(1, &words);
    let report = tool.report();
    let expected = [
        ("202407", "done"),
        ("202406", "failed"),
        ("202405", "not_begun"),
    ];
    assert_eq!(states(&report), expected);
    let error = report["partitions"][1]["error"].as_str().unwrap();
    assert!(error.contains("not_june"), "{error}");
    assert!(outcome.stdout.contains(error));
    assert_eq!(report["totals"]["errors"], 1);
    assert_eq!(rows(target, "202405"), 0);

    allow_june(target);
    let tool = tool.arg("--resume");
    // The target has changed and changed back, which is no difference.
    tool.run().assert_code(0);
    assert_complete(months(), target);
}

#[test]
fn a_run_that_keeps_going_does_the_others_and_tells_which_one_failed() {
    let target = "kept_going";
    let tool = tool_for_all(target).arg("--keep-going");
    refuse_june(target);
    let outcome = tool.run();
    outcome.assert_one_error(1, &["partition 202406", "not_june"]);
    assert!(!outcome.stderr.contains("not started"));
    let report = tool.report();
    let expected = [("202407", "done"), ("202406", "failed"), ("202405", "done")];
    assert_eq!(states(&report), expected);
    for month in ["202407", "202405"] {
        assert_eq!(rows(target, month), expected_rows(month), "{month}");
    }
    assert_eq!(rows(target, "202406"), 0);
    assert!(outcome.stdout.contains("3: 2 done, 1 failed"));

    allow_june(target);
    let tool = tool.arg("--resume");
    let outcome = tool.run();
    assert_eq!(begun(outcome.assert_code(0)), ["202406"]);
    assert_complete(months(), target);
}

#[test]
fn a_partition_that_another_process_works_on_is_an_error_before_anything_begins() {
    let target = "locked";
    // At work until it is killed, however long the second one takes to begin.
    let slow = ["--partition", "202405", "--max-rows-per-second", "1500"];
    let tool = tool(target).args(slow);
    let mut first = tool.spawn();
    wait_for_rows(&mut first, target, "202405");
    let holder = format!("process {}", first.id());
    let second = slow.into_iter().fold(tool, Tool::without_arg);
    let second = second.args(["--all-partitions", "--resume", "--keep-going"]);
    second.run().assert_one_error(2, &["202405", &holder]);
    assert_eq!(rows(target, "202407") + rows(target, "202406"), 0);
    first.kill();
    first.wait();
    second.run().assert_code(0);
    assert_complete(months(), target);
}

#[test]
fn a_connection_that_is_refused_stops_the_run_at_once() {
    let tool = Tool::new(months())
        .args(["--all-partitions", "--keep-going"])
        .env("CLICKHOUSE_URL", "http://127.0.0.1:1");
    tool.run().assert_one_error(2, &["cannot be reached"]);
    let tool = tool
        .env("CLICKHOUSE_URL", months().server.url())
        .env("CLICKHOUSE_USER", "nobody");
    tool.run().assert_one_error(2, &["CLICKHOUSE_PASSWORD"]);
    assert!(!tool.state_dir().exists());
}

#[test]
fn a_server_that_goes_away_stops_a_run_that_keeps_going() {
    let server = Server::start(crate::support::Options::default());
    let database = server.database("gone");
    database.load_schema();
    for first_day in ["2024-05-01", "2024-06-01", "2024-07-01"] {
        database.load_month(first_day, OBSERVATIONS);
    }
    let tool = Tool::new(&database)
        .args(["--partition", "202404..202407", "--keep-going"])
        .args(["--batch-size", "2000"])
        .env("MAX_RETRIES", "0");
    let mut run = tool.spawn();
    let events = "SELECT count() FROM events_full WHERE _partition_id = '202406'";
    while ask_number(&database, events) == 0 {
        assert!(run.is_running());
        thread::sleep(Duration::from_millis(5));
    }
    server.kill();
    let outcome = run.wait();
    outcome.assert_one_error(1, &["partition 202406", "2 partitions failed"]);
    let report = tool.report();
    let expected = [
        ("202407", "done"),
        ("202406", "failed"),
        ("202405", "failed"),
    ];
    assert_eq!(states(&report), expected);
    let error = report["partitions"][2]["error"].as_str().unwrap();
    assert!(error.contains("cannot be reached"), "{error}");

    server.restart();
    let tool = tool.arg("--resume");
    tool.run().assert_code(0);
    assert_eq!(
        ask(&database, "SELECT count() FROM events_full FINAL"),
        ask(&database, "SELECT count() FROM observations FINAL")
    );
}

#[test]
fn a_month_in_which_days_cannot_be_counted_is_left_out_and_told() {
    let database = crate::support::small_month("long_ago");
    execute(
        &database,
        "INSERT INTO observations (id, project_id, type, start_time, event_ts) \
         VALUES ('old', 'project', 'SPAN', '1960-01-01 00:00:00', now64())",
    );
    let tool = Tool::new(&database).arg("--all-partitions");
    let outcome = tool.run();
    outcome.assert_code(0).assert_stderr_contains("196001");
    assert_eq!(begun(&outcome), ["202407", "202406"]);
}

#[test]
fn what_only_looks_goes_through_all_of_them_and_tells_which_failed() {
    let database = months();
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("report.json");
    let arguments = ["events-backfill", "--all-partitions", "--quiet", "--report"];
    let arguments = arguments.into_iter().chain(report.to_str());
    let environment = Environment::of(&[
        ("CLICKHOUSE_URL", &database.server.url()),
        ("CLICKHOUSE_DB", &database.name),
    ]);
    let request = Request::new(Arguments::parse_from(arguments).run, &environment).unwrap();
    let look = async |_: &Session, options: Options| {
        let partition = options.partition.to_string();
        if partition == "202406" {
            return Err(Error::failed("it differs"));
        }
        Ok(Looked {
            text: String::new(),
            report: serde_json::json!({"partition": partition, "equal": true}),
            outcome: Ok(()),
        })
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let outcome = runtime.block_on(each_partition::each(request, None, look));
    let error = outcome.unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert_eq!(
        error.to_string(),
        "1 of 3 partitions failed: partition 202406: it differs"
    );
    let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    let expected = serde_json::json!({"partitions": [
        {"partition": "202407", "equal": true},
        {"partition": "202406", "error": "it differs"},
        {"partition": "202405", "equal": true},
    ]});
    assert_eq!(report, expected);
}

#[test]
fn an_empty_table_has_nothing_to_do() {
    let database = Server::shared().database("empty");
    database.load_schema();
    let tool = Tool::new(&database).arg("--all-partitions");
    tool.run().assert_one_error(2, &["has no rows"]);
}

#[test]
fn three_partitions_take_no_more_memory_than_one() {
    let database = Server::shared().database("memory");
    database.load_schema();
    database.execute_file(&repository_file("bench-data/older-events.sql"), &[]);
    for month in MONTHS {
        let first_day = format!("toDateTime64('{}-{}-01', 3)", &month[..4], &month[4..]);
        execute(
            &database,
            &format!(
                "INSERT INTO traces (id, project_id, timestamp, event_ts, name, metadata)
                 SELECT concat('{month}-', toString(number)), 'project',
                     {first_day} + number % 28 * 86400, now64(), 'name',
                     map('key', repeat(hex(sipHash128(number)), 10))
                 FROM numbers(100000)"
            ),
        );
        execute(
            &database,
            &format!(
                "INSERT INTO observations
                     (id, trace_id, project_id, type, start_time, event_ts, input)
                 SELECT concat('{month}-', toString(number)), concat('{month}-', toString(number)),
                     'project', 'SPAN', {first_day} + number % 28 * 86400, now64(),
                     repeat(hex(sipHash128(number)), 60)
                 FROM numbers(100000)"
            ),
        );
    }
    let peak = |selection: &str, field: &str| {
        execute(&database, "TRUNCATE TABLE events");
        let tool = Tool::new(&database)
            .args(["--partition", selection, "--target-table", "events"])
            .args(["--memory-limit", "256MiB", "--concurrency", "2"]);
        tool.run().assert_code(0);
        let report = tool.report();
        let peak = report.pointer(field).and_then(Value::as_u64);
        peak.unwrap_or_else(|| panic!("{report}"))
    };
    let one = peak("202405", "/peak_rss_bytes");
    let three = peak("202405..202407", "/totals/peak_rss_bytes");
    println!("one: {one} bytes, three: {three} bytes");
    assert!(three < 256 * 1024 * 1024, "{three}");
    assert!(three as f64 <= 1.15 * one as f64, "{one} {three}");
}
