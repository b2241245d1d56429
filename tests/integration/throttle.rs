//! A run is a good guest: it goes slower where the server has much to do, and where it is told to.

use std::process;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::differential::{
    Specification, ask, ask_number, assert_complete, execute, keep_versions_apart,
};
use crate::support::{Database, OPERATOR, Options, Running, SAMPLE_PARTITION, Server, Tool};

/// A month of so many observations, and its events as they should be.
fn month(name: &str, observations: u64) -> Database<'static> {
    let database = Server::shared().sample_month(name, observations);
    Specification::current().fill(&database, SAMPLE_PARTITION, "events_full", "expected");
    database
}

fn tool(database: &Database) -> Tool {
    Tool::new(database).args(["--partition", SAMPLE_PARTITION])
}

fn throttled(tool: &Tool, reason: &str) -> f64 {
    let seconds = &tool.report()["throttled_seconds"][reason];
    seconds.as_f64().unwrap_or(0.0)
}

fn active_parts(database: &Database) -> u64 {
    ask_number(
        database,
        "SELECT count() FROM system.parts \
         WHERE active AND database = currentDatabase() AND table = 'events_full'",
    )
}

/// Waits until that is so while a run goes on.
#[track_caller]
fn wait_while(running: &mut Running, what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(running.is_running(), "the run ended before {what}");
        assert!(started.elapsed() < Duration::from_secs(120), "{what}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_run_waits_for_merges_before_there_are_too_many_parts() {
    let database = month("many_parts", 40_000);
    execute(
        &database,
        "ALTER TABLE events_full MODIFY SETTING parts_to_throw_insert = 70",
    );
    keep_versions_apart(&database, &["events_full"]);
    let tool = tool(&database)
        .args(["--batch-size", "250", "--concurrency", "2"])
        .args(["--max-rows-per-second", "1000"]);
    let mut running = tool.spawn();
    wait_while(&mut running, "more than half of the parts", || {
        active_parts(&database) > 35
    });
    // A segment that is under way trickles: at full speed there would be 20 more.
    wait_while(&mut running, "hardly any more parts", || {
        let before = active_parts(&database);
        thread::sleep(Duration::from_secs(10));
        active_parts(&database) <= before + 3
    });
    assert!(active_parts(&database) < 70);
    execute(
        &database,
        &format!("SYSTEM START MERGES `{}`.events_full", database.name),
    );
    execute(&database, "OPTIMIZE TABLE events_full");
    let outcome = running.wait();
    outcome
        .assert_code(0)
        .assert_stderr_contains("going slower: active parts in a partition: ")
        .assert_stderr_contains("above 35 (--max-parts)");
    assert_eq!(tool.report()["retries"], 0);
    assert!(throttled(&tool, "parts") > 8.0);
    assert_complete(&database, "events_full");
}

#[test]
fn limits_of_rows_and_of_bytes_are_kept_and_told() {
    let database = month("limits", 12_000);
    for (limit, reason) in [
        (["--max-rows-per-second", "3000"], "rows_per_second"),
        (["--max-bytes-per-second", "4MiB"], "bytes_per_second"),
    ] {
        execute(&database, "TRUNCATE TABLE events_full");
        execute(&database, "TRUNCATE TABLE events_core");
        let tool = tool(&database).args(limit).arg("--restart");
        let outcome = tool.run();
        outcome.assert_code(0);
        let report = tool.report();
        let rate = report["observations_per_second"].as_f64().unwrap();
        assert!(reason != "rows_per_second" || rate < 4_200.0, "{report}");
        assert!(throttled(&tool, reason) > 2.0, "{report}");
        let words = format!("Time throttled              {}", reason.replace('_', " "));
        assert!(outcome.stdout.contains(&words), "{outcome:?}");
        assert_complete(&database, "events_full");
    }
}

#[test]
fn the_slowest_run_has_no_segment_read_twice() {
    let database = month("slowest", 0);
    execute(
        &database,
        "INSERT INTO observations (id, trace_id, project_id, type, start_time, event_ts, input) \
         SELECT toString(number), 't', 'p', 'SPAN', toDateTime64('2024-06-11', 3) + number, \
         now64(3), randomPrintableASCII(1000) FROM numbers(25000)",
    );
    let tool = tool(&database).args(["--max-rows-per-second", "500", "--concurrency", "4"]);
    let started = Instant::now();
    tool.run().assert_code(0);
    // Longer than the server waits for a client that does not read, or does not send.
    assert!(started.elapsed() > Duration::from_secs(45));
    let report = tool.report();
    assert_eq!(
        (&report["retries"], &report["events_inserted"]),
        (&0.into(), &25_000.into())
    );
}

#[test]
fn a_run_makes_room_for_the_queries_of_others() {
    let database = month("others", 30_000);
    let slowly = |tool: Tool| tool.args(["--max-rows-per-second", "3000"]);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..6 {
                    ask(
                        &database,
                        "SELECT sleepEachRow(1) FROM numbers(3) SETTINGS max_block_size = 1",
                    );
                }
            });
        }
        let tool = slowly(tool(&database)).args(["--max-queries", "1"]);
        let outcome = tool.run();
        outcome
            .assert_code(0)
            .assert_stderr_contains("(--max-queries)");
        assert!(throttled(&tool, "queries") > 0.0);
    });
    assert_complete(&database, "events_full");
}

#[test]
fn statements_of_a_run_give_way_to_others_unless_told_not_to() {
    let database = month("nice", 1_000);
    let niceness = |tool: Tool| {
        execute(&database, "TRUNCATE TABLE events_full");
        tool.run().assert_code(0);
        execute(&database, "SYSTEM FLUSH LOGS query_log");
        ask(
            &database,
            "SELECT arrayStringConcat(arraySort(groupUniqArray( \
             Settings['os_threads_nice_value_query'])), ',') FROM system.query_log \
             WHERE query_kind = 'Insert' AND http_user_agent LIKE 'events-backfill/%' \
             AND has(tables, currentDatabase() || '.events_full')",
        )
    };
    assert_eq!(niceness(tool(&database)), "19");
    assert_eq!(
        niceness(tool(&database).args(["--restart", "--no-throttle"])),
        ",19"
    );
}

#[test]
fn what_the_user_may_not_look_at_is_told_once_and_left_out() {
    let rights = format!(
        "<grants><query>GRANT SELECT, INSERT, SHOW ON granted_{}_1.*</query>\
         <query>GRANT SELECT ON system.parts</query>\
         <query>GRANT SELECT ON system.parts_columns</query></grants>",
        process::id()
    );
    let server = Server::start(Options {
        config: "<access_control_improvements>\
                 <select_from_system_db_requires_grant>true</select_from_system_db_requires_grant>\
                 </access_control_improvements>\
                 <max_server_memory_usage>4000000000</max_server_memory_usage>"
            .to_owned(),
        profiles: vec![("sees_parts", String::new())],
        of_users: vec![("sees_parts", rights)],
        ..Options::default()
    });
    let database = server.database("granted");
    database.load_schema();
    database.load_sample_month(5_000);
    let slowly = ["--max-rows-per-second", "500"];
    let by_operator = tool(&database)
        .args(slowly)
        .env("CLICKHOUSE_USER", OPERATOR.0)
        .env("CLICKHOUSE_PASSWORD", OPERATOR.1)
        .run();
    by_operator.assert_code(0);
    assert!(
        !by_operator.stderr.contains("is ignored"),
        "{by_operator:?}"
    );
    execute(&database, "TRUNCATE TABLE events_full");
    let by_other = tool(&database)
        .args(slowly)
        .env("CLICKHOUSE_USER", "sees_parts")
        .run();
    by_other.assert_code(0);
    for flag in ["merges", "queries", "slow-queries", "server-memory"] {
        let told = format!("--max-{flag} is ignored");
        assert_eq!(
            by_other.stderr.matches(&told).count(),
            1,
            "{told}: {by_other:?}"
        );
    }
    assert!(!by_other.stderr.contains("--max-parts is ignored"));
}

#[test]
fn a_threshold_that_makes_no_sense_is_refused() {
    let database = month("thresholds", 0);
    for (flag, value) in [
        ("--max-rows-per-second", "7"),
        ("--max-bytes-per-second", "1KiB"),
        ("--max-server-memory", "101"),
        ("--max-parts", "0"),
        ("--max-insert-slowdown", "x"),
    ] {
        let outcome = tool(&database).args([flag, value]).run();
        outcome.assert_one_error(2, &[flag]);
    }
}
