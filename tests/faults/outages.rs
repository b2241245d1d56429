//! What a server can do to a run: die, refuse, or be another one than before. Nothing of it costs a
//! row, and whatever ends the run says how to go on.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::differential;
use crate::support::differential::{Specification, ask, ask_number, assert_complete, execute};
use crate::support::proxy::Proxy;
use crate::support::{
    Database, Options, Outcome, Running, SAMPLE_PARTITION, Server, Tool, repository_file,
};
use nix::libc::{SIGCONT, SIGSTOP};

/// More than the buffers of a connection hold, and one segment.
const OBSERVATIONS: u64 = 25_000;

/// A day whose traces take long to send, as ClickHouse counts days: the ninth of the month, with which
/// a query begins, since days as small as these are read eight at a time.
const LONG_DAY: u16 = 19_883;

/// How long the server stays away from a run that is to outlast it: longer than the first pauses.
const OUTAGE: Duration = Duration::from_millis(1_500);

/// How long something is waited for that comes within a second or two.
const PATIENCE: Duration = Duration::from_secs(60);

/// The server that all of these tests use, and most kill.
fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start(Options::default()))
}

/// One test at a time: see [`server`].
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // A test that failed may have left it dead, which is not the next one's fault.
    if server().query("SELECT 1").is_err() {
        server().restart();
    }
    turn
}

/// Sources that nobody changes, and the table `expected`.
fn month() -> &'static Database<'static> {
    static MONTH: OnceLock<Database<'static>> = OnceLock::new();
    MONTH.get_or_init(|| {
        let database = server().sample_month("outages", OBSERVATIONS);
        // 40 MB, more than the buffers of a connection hold.
        execute(
            &database,
            &format!(
                "INSERT INTO traces (id, project_id, timestamp, event_ts, metadata)
                 SELECT concat('long-', toString(number)), 'project', toDate({LONG_DAY}), now64(),
                     map('long', repeat(hex(sipHash128(number)), 312))
                 FROM numbers(4000)"
            ),
        );
        Specification::current().fill(&database, SAMPLE_PARTITION, "events_full", "expected");
        database
    })
}

/// The program, with a target of that name, in small parts, and with less memory than a segment takes.
fn tool(target: &str) -> Tool {
    Tool::new(month()).args([
        "--partition",
        SAMPLE_PARTITION,
        "--target-table",
        target,
        "--concurrency",
        "1",
        "--batch-size",
        "500",
        "--memory-limit",
        "144MiB",
    ])
}

/// A new target in which rows that were written twice stay visible, also after a restart of the
/// server, which would forget SYSTEM STOP MERGES.
fn target_without_merges(target: &str) {
    create_target(
        target,
        "max_bytes_to_merge_at_max_space_in_pool = 1, max_bytes_to_merge_at_min_space_in_pool = 1",
    );
}

fn create_target(target: &str, settings: &str) {
    let database = month();
    execute(database, &format!("CREATE TABLE {target} AS events_full"));
    execute(
        database,
        &format!("ALTER TABLE {target} MODIFY SETTING {settings}"),
    );
}

fn rows(target: &str) -> u64 {
    ask_number(month(), &format!("SELECT count() FROM {target}"))
}

/// Panics unless the target is what the specification says, and gives the number of rows that were
/// written again.
fn written_again(target: &str) -> u64 {
    assert_complete(month(), target);
    rows(target) - rows(&format!("{target} FINAL"))
}

/// Panics unless the run failed with one sentence that has these words and says how to go on.
#[track_caller]
fn assert_failed_with_way_on(outcome: &Outcome, words: &[&str]) {
    outcome.assert_one_error(1, &[words, &["continue with --resume"]].concat());
}

/// Continues a run, and panics unless it is then complete.
fn resume(tool: Tool) -> Tool {
    let tool = tool.arg("--resume");
    tool.run()
        .assert_code(0)
        .assert_stderr_contains("resuming with");
    let report = tool.report();
    assert_eq!(report["resumed"], true);
    assert_eq!(report["segments_done"], report["segments_total"]);
    tool.without_arg("--resume")
}

// -------------------------------------------------------------------------------------------------
// A server that dies
// -------------------------------------------------------------------------------------------------

/// What the server is doing for the run when it is killed.
#[derive(Clone, Copy)]
enum Moment {
    /// It sends traces.
    Loading,
    /// It sends observations, some of which have arrived in the target.
    Reading,
    /// It has written a part of an insert, and all observations of it are read.
    Inserting,
}

impl Moment {
    /// Whether it is now.
    fn is_now(self, target: &str) -> bool {
        match self {
            Moment::Loading => {
                queries(&format!(
                    "query LIKE '%toDate({LONG_DAY})%' AND read_rows > 0"
                )) > 0
            }
            Moment::Reading => {
                rows(target) > 0 && queries("query LIKE '%`observations` AS o FINAL%'") > 0
            }
            Moment::Inserting => {
                rows(target) > 0
                    && queries("query_kind = 'Insert'") > 0
                    && queries("query LIKE '%`observations` AS o FINAL%'") == 0
            }
        }
    }

    /// Whether it still is, with the program halted.
    fn is_still(self, target: &str) -> bool {
        thread::sleep(Duration::from_millis(100));
        self.is_now(target)
    }
}

/// How many queries of the program are in work for which this is true.
fn queries(condition: &str) -> u64 {
    ask_number(
        month(),
        &format!(
            "SELECT count() FROM system.processes \
             WHERE http_user_agent LIKE '%events-backfill%' AND {condition}"
        ),
    )
}

/// Kills the server at that moment of a run.
fn kill_server(run: &mut Running, target: &str, moment: Moment) {
    let started = Instant::now();
    loop {
        assert!(run.is_running(), "the run ended before the moment had come");
        assert!(started.elapsed() < PATIENCE, "the moment did not come");
        if moment.is_now(target) {
            // The moment would pass before the signal arrives. With nobody to read what it sends,
            // the server cannot go on, unless it was at the end of it anyway.
            run.signal(SIGSTOP);
            let is_still = moment.is_still(target);
            if is_still {
                month().server.kill();
            }
            run.signal(SIGCONT);
            if is_still {
                return;
            }
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Makes each insert into the target wait after its rows are written.
fn delay_answers(target: &str) {
    execute(
        month(),
        &format!(
            "CREATE MATERIALIZED VIEW {target}_delay ENGINE = Null AS \
             SELECT sleep(2) AS slept FROM {target}"
        ),
    );
}

/// Starts the server again.
fn restart_server(target: &str) {
    let database = month();
    database.server.restart();
    execute(database, &format!("DROP TABLE IF EXISTS {target}_delay"));
}

/// Prepares a target and kills the server at that moment of a run of the program.
fn run_until_server_dies(tool: &Tool, target: &str, moment: Moment) -> Running {
    target_without_merges(target);
    if matches!(moment, Moment::Inserting) {
        delay_answers(target);
    }
    let mut run = tool.spawn();
    kill_server(&mut run, target, moment);
    run
}

/// Panics unless a run that meets such an outage goes on by itself and loses nothing.
fn assert_outlasted(target: &str, moment: Moment, words: &str) {
    let _turn = one_at_a_time();
    let tool = tool(target);
    let run = run_until_server_dies(&tool, target, moment);
    thread::sleep(OUTAGE);
    restart_server(target);
    let outcome = run.wait();
    outcome
        .assert_code(0)
        .assert_stderr_contains(words)
        .assert_stderr_contains("trying again in");
    let report = tool.report();
    // The one that the kill broke, and at least one that met nobody.
    assert!(report["retries"].as_u64() >= Some(2), "{report}");
    let again = written_again(target);
    println!(
        "{target}: {} tries repeated, {again} rows written again",
        report["retries"]
    );
    assert_eq!(again, 0);
}

/// Panics unless a run that may not wait for the server ends with a sentence, and is completed by
/// `--resume` once the server is there again.
fn assert_resumed(target: &str, moment: Moment, words: &str) {
    let _turn = one_at_a_time();
    let tool = tool(target).env("MAX_RETRIES", "1");
    let outcome = run_until_server_dies(&tool, target, moment).wait();
    assert_failed_with_way_on(&outcome, &["the connection to ClickHouse failed", words]);
    restart_server(target);
    let written = rows(target);
    resume(tool);
    let again = written_again(target);
    println!("{target}: {written} rows written before, {again} of them again");
    match moment {
        Moment::Loading => assert_eq!((written, again), (0, 0)),
        Moment::Reading | Moment::Inserting => {
            assert!(written > 0, "nothing had been written");
            assert_eq!(again, 0);
        }
    }
}

#[test]
fn a_run_outlasts_a_server_that_dies_while_it_sends_traces() {
    let words = "loading traces of 2024-06-09";
    assert_outlasted("loading_outlasted", Moment::Loading, words);
}

#[test]
fn a_run_outlasts_a_server_that_dies_while_it_sends_observations() {
    assert_outlasted("reading_outlasted", Moment::Reading, "segment ");
}

#[test]
fn a_run_outlasts_a_server_that_dies_before_it_acknowledges_what_it_wrote() {
    let words = "inserting_outlasted failed: the connection to ClickHouse failed";
    assert_outlasted("inserting_outlasted", Moment::Inserting, words);
}

#[test]
fn a_run_that_a_server_ended_while_it_sent_traces_can_be_resumed() {
    let words = "cannot load the traces of 2024-06-09 to 2024-06-16";
    assert_resumed("loading_resumed", Moment::Loading, words);
}

#[test]
fn a_run_that_a_server_ended_while_it_sent_observations_can_be_resumed() {
    // It may be the insert that is met first.
    let words = " failed";
    assert_resumed("reading_resumed", Moment::Reading, words);
}

#[test]
fn a_run_that_a_server_ended_before_it_acknowledged_what_it_wrote_can_be_resumed() {
    // It cannot be told what of it is there.
    let words = "segment 0 failed";
    assert_resumed("inserting_resumed", Moment::Inserting, words);
}

// -------------------------------------------------------------------------------------------------
// A server that refuses
// -------------------------------------------------------------------------------------------------

/// So many parts are let into a target, and no more.
const MOST_PARTS: u64 = 6;

/// A new target that refuses inserts, because its parts are not merged. (Once they may be merged,
/// they are, few as they are: usually ClickHouse waits for more of about equal size.)
fn target_that_fills_up(target: &str) {
    create_target(
        target,
        &format!("parts_to_throw_insert = {MOST_PARTS}, merge_selector_base = 1"),
    );
    differential::keep_versions_apart(month(), &[target]);
}

/// How many inserts the server has refused because of too many parts since it was started.
fn rejected_inserts() -> u64 {
    ask_number(
        month(),
        "SELECT sum(value) FROM system.events WHERE event = 'RejectedInserts'",
    )
}

fn start_merges(target: &str) {
    let database = month();
    execute(
        database,
        &format!("SYSTEM START MERGES `{}`.`{target}`", database.name),
    );
}

fn parts(target: &str) -> u64 {
    ask_number(
        month(),
        &format!(
            "SELECT count() FROM system.parts \
             WHERE active AND database = currentDatabase() AND table = '{target}'"
        ),
    )
}

#[test]
fn too_many_parts_are_waited_for_until_they_are_merged() {
    let _turn = one_at_a_time();
    let target = "merged_in_time";
    target_that_fills_up(target);
    // With it the run would wait before an insert is refused: `throttle.rs` of the other tests.
    let tool = tool(target).arg("--no-throttle");
    let before = rejected_inserts();
    let mut run = tool.spawn();
    let started = Instant::now();
    while rejected_inserts() < before + 2 {
        assert!(run.is_running(), "the run ended without being refused");
        assert!(started.elapsed() < PATIENCE, "no insert was refused");
        thread::sleep(Duration::from_millis(100));
    }
    assert!(parts(target) >= MOST_PARTS);
    start_merges(target);
    run.wait()
        .assert_code(0)
        .assert_stderr_contains("error 252")
        .assert_stderr_contains("trying again in");
    let report = tool.report();
    let refused = rejected_inserts() - before;
    println!(
        "{refused} inserts refused for too many parts, {} tries repeated",
        report["retries"]
    );
    // A segment is read again after each refusal, and no other.
    assert_eq!(report["retries"], refused);
    assert_complete(month(), target);
}

#[test]
fn too_many_parts_that_are_never_merged_end_the_run_and_it_can_be_resumed() {
    let _turn = one_at_a_time();
    let target = "never_merged";
    target_that_fills_up(target);
    let tool = tool(target).arg("--no-throttle").env("MAX_RETRIES", "1");
    let before = rejected_inserts();
    let outcome = tool.run();
    let words = ["(2 tries)", "error 252", "Too many parts", "TOO_MANY_PARTS"];
    assert_failed_with_way_on(&outcome, &words);
    assert_eq!(rejected_inserts() - before, 2);
    assert!(parts(target) >= MOST_PARTS);
    assert!(rows(target) > 0);
    start_merges(target);
    resume(tool.without_env("MAX_RETRIES"));
    assert_complete(month(), target);
}

/// Rows of 20 KB.
const WIDE_ROWS: u64 = 7_500;
/// How often a part of all of them has to be halved until it is a small one.
const HALVINGS: u64 = 6;

/// How many inserts into the table the server had too little memory for.
fn inserts_over_limit(database: &Database, table: &str) -> u64 {
    execute(database, "SYSTEM FLUSH LOGS query_log");
    ask_number(
        database,
        &format!(
            "SELECT count() FROM system.query_log WHERE query_kind = 'Insert' \
             AND exception_code = 241 AND query LIKE 'INSERT INTO `{}`.`{table}`%'",
            database.name
        ),
    )
}

/// A minute for each statement, five seconds for each part, and many rows: on a smaller scale.
#[test]
fn a_slow_target_under_a_limit_of_time_and_of_parts_has_no_segment_read_twice() {
    let _turn = one_at_a_time();
    let limit = "<max_execution_time>12</max_execution_time><constraints><max_execution_time>\
                 <const/></max_execution_time></constraints>";
    let server = Server::start(Options {
        profiles: vec![("hurried", limit.to_owned())],
        ..Options::default()
    });
    let database = server.sample_month("slow_target", 100_000);
    differential::drop_indexes(&database, "events_full");
    for statement in [
        "ALTER TABLE events_full MODIFY SETTING parts_to_throw_insert = 20",
        "CREATE MATERIALIZED VIEW slowly ENGINE = Null AS SELECT sleepEachRow(0.0001) AS slept \
         FROM events_full",
    ] {
        execute(&database, statement);
    }
    differential::keep_versions_apart(&database, &["events_full"]);
    let proxy = Proxy::start(server.http_port());
    let tool = Tool::new(&database)
        .env("CLICKHOUSE_URL", proxy.url())
        .env("CLICKHOUSE_USER", "hurried")
        .args(["--partition", SAMPLE_PARTITION, "--no-root-spans"])
        .args(["--memory-limit", "192MiB", "--part-bytes", "16MiB"]);
    tool.run().assert_code(0);
    let report = tool.report();
    assert_eq!(report["retries"], 0, "{report}");
    let segments = proxy.exchanges("AS o FINAL ARRAY JOIN");
    assert_eq!(report["segments_total"], segments.len());
    // None lasts as long as it may: the rows of a segment go into several. (The server sleeps 10 s over
    // all of them, however fast it is, and an insert is ended after 4 s.)
    let statements = proxy.exchanges("INSERT INTO");
    let inserts = statements
        .iter()
        .filter(|statement| statement.sql.starts_with("INSERT"));
    assert!(inserts.count() > segments.len());
    assert_eq!(report["events_inserted"], count_events(&database));
}

/// A server that lets no query have more memory than an insert of some 10 MB of such rows takes.
/// (Up to that size a part has one file, and beyond it two buffers of 1 MiB for each column.)
fn small_server() -> Server {
    Server::start(Options {
        profile: "<max_memory_usage>200000000</max_memory_usage>".to_owned(),
        ..Options::default()
    })
}

#[test]
fn a_part_that_the_server_has_no_memory_for_is_made_smaller() {
    let _turn = one_at_a_time();
    let server = small_server();
    let database = server.database("memory");
    database.load_schema();
    database.execute_file(&repository_file("bench-data/older-events.sql"), &[]);
    differential::add_wide_rows(&database, WIDE_ROWS);
    for compression in ["none", "lz4"] {
        let target = format!("events_{compression}");
        execute(&database, &format!("CREATE TABLE {target} AS events"));
        let tool = Tool::new(&database)
            .args(["--partition", SAMPLE_PARTITION, "--target-table", &target])
            .args(["--memory-limit", "256MiB", "--concurrency", "1"])
            .args(["--compression", compression])
            // Blocks of 1 MB.
            .env("STREAM_BLOCK_SIZE", "50")
            // A part that stays as it is should not keep the test waiting.
            .env("MAX_RETRIES", "3");
        let outcome = tool.run();
        let refused = inserts_over_limit(&database, &target);
        println!("{compression}: {refused} inserts refused for want of memory");
        assert!(refused > 0, "every part was small enough");
        outcome
            .assert_code(0)
            .assert_stderr_contains("error 241")
            .assert_stderr_contains("trying again in");
        assert!(refused <= HALVINGS, "{refused} inserts refused");
        let content = |id: &str, table: &str| {
            ask(
                &database,
                &format!(
                    "SELECT count(), sum(cityHash64({id}, assumeNotNull(input))) \
                     FROM {table} FINAL SETTINGS max_memory_usage = 0"
                ),
            )
        };
        assert_eq!(content("span_id", &target), content("id", "observations"));
        assert_eq!(tool.report()["events_inserted"], WIDE_ROWS);
    }
}

// -------------------------------------------------------------------------------------------------
// Another server
// -------------------------------------------------------------------------------------------------

fn count_events(database: &Database) -> u64 {
    ask_number(database, "SELECT count() FROM events_full")
}

/// A run of a handful of rows that the server ended after the first ones.
fn unfinished_run(database: &Database) -> Tool {
    execute(
        database,
        "ALTER TABLE events_full MODIFY SETTING parts_to_throw_insert = 1",
    );
    differential::keep_versions_apart(database, &["events_full"]);
    let tool = Tool::new(database)
        .args(["--partition", SAMPLE_PARTITION, "--batch-size", "1"])
        .env("STREAM_BLOCK_SIZE", "1")
        .env("MAX_RETRIES", "0");
    assert_failed_with_way_on(&tool.run(), &["Too many parts"]);
    assert!(count_events(database) > 0);
    execute(
        database,
        "ALTER TABLE events_full RESET SETTING parts_to_throw_insert",
    );
    tool.without_env("MAX_RETRIES")
}

/// Panics unless the run is not continued, for a reason with these words.
#[track_caller]
fn assert_not_resumed(tool: Tool, words: &[&str]) -> Tool {
    let tool = tool.arg("--resume");
    let outcome = tool.run();
    outcome.assert_code(2);
    for word in words
        .iter()
        .chain(&["with different settings", "--restart"])
    {
        outcome.assert_stderr_contains(word);
    }
    tool.without_arg("--resume")
}

/// Continues the run, and panics unless it is then complete.
fn assert_resumable(tool: Tool, database: &Database) {
    resume(tool);
    Specification::current().fill(database, SAMPLE_PARTITION, "events_full", "expected");
    assert_complete(database, "events_full");
}

#[test]
fn a_run_is_not_continued_in_another_database_of_the_same_content() {
    let _turn = one_at_a_time();
    let (database, other) = (server().database("original"), server().database("copy"));
    for database in [&database, &other] {
        database.load_small_month();
    }
    let tool = unfinished_run(&database).env("CLICKHOUSE_DB", &other.name);
    let tables = [&database, &other].map(|database| format!("{}.observations", database.name));
    let tool = assert_not_resumed(tool, &[&tables[0], &tables[1]]);
    assert_eq!(ask_number(&other, "SELECT count() FROM events_full"), 0);
    assert_resumable(tool.env("CLICKHOUSE_DB", &database.name), &database);
}

#[test]
fn a_run_is_not_continued_on_another_server_of_the_same_content() {
    let _turn = one_at_a_time();
    let database = server().database("original");
    let server = Server::start(Options::default());
    let other = Database {
        server: &server,
        name: database.name.clone(),
    };
    let create = format!("CREATE DATABASE `{}`", other.name);
    server.query(&create).unwrap();
    for database in [&database, &other] {
        database.load_small_month();
    }
    let tool = unfinished_run(&database).env("CLICKHOUSE_URL", server.url());
    // It has tables of the same names and columns, and they are others.
    let tool = assert_not_resumed(tool, &["the identity of the observations table"]);
    assert_eq!(ask_number(&other, "SELECT count() FROM events_full"), 0);
    let tool = tool.env("CLICKHOUSE_URL", database.server.url());
    assert_resumable(tool, &database);
}

#[test]
fn a_run_is_not_continued_with_other_source_columns_until_they_are_the_same_again() {
    let _turn = one_at_a_time();
    let database = server().database("columns");
    database.load_small_month();
    let mut tool = unfinished_run(&database);
    let written = count_events(&database);
    for (change, undo, words) in [
        (
            "ALTER TABLE observations ADD COLUMN later String",
            "ALTER TABLE observations DROP COLUMN later",
            "column later of the observations table was missing and is now String",
        ),
        (
            "ALTER TABLE traces ADD COLUMN later UInt8",
            "ALTER TABLE traces DROP COLUMN later",
            "column later of the traces table was missing and is now UInt8",
        ),
        (
            "ALTER TABLE observations MODIFY COLUMN level String",
            "ALTER TABLE observations MODIFY COLUMN level LowCardinality(String)",
            "column level of the observations table was LowCardinality(String) and is now String",
        ),
        (
            "ALTER TABLE traces MODIFY COLUMN release LowCardinality(Nullable(String))",
            "ALTER TABLE traces MODIFY COLUMN release Nullable(String)",
            "column release of the traces table was Nullable(String) and is now \
             LowCardinality(Nullable(String))",
        ),
    ] {
        execute(&database, change);
        tool = assert_not_resumed(tool, &[words]);
        execute(&database, undo);
    }
    assert_eq!(count_events(&database), written);
    assert_resumable(tool, &database);
}
