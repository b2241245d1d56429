//! A repair that is interrupted, or whose server or connections die, writes what is wanted once.
//!
//! Nothing is merged throughout, so a row that is written twice is there twice.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use crate::support::differential::{
    ask_number, execute, slow_down, speed_up, wait_for_end_of_queries,
};
use crate::support::proxy::{Action, Fault, Place, Proxy};
use crate::support::repair;
use crate::support::repair::{
    BOTH, assert_each_once, assert_equal, backfill_month, backfilled, copy_of, delete,
    never_merge_by_itself, repair, wait_for_rows,
};
use crate::support::{Database, SAMPLE_PARTITION, Server, Tool};

/// How often the server is killed.
const SERVER_KILLS: u32 = 4;

/// One event in two.
const HALF: &str = "cityHash64(span_id) % 2 = 0";

/// The backfilled month without half of its events.
fn halved(database: Database<'static>) -> Database<'static> {
    delete(&database, &BOTH, HALF);
    never_merge_by_itself(&database);
    database
}

/// A server for those tests that kill it or its connections, and the backfilled month on it without
/// half of its events. One test at a time.
fn mortal(name: &str) -> (Database<'static>, MutexGuard<'static, ()>) {
    static TURN: Mutex<()> = Mutex::new(());
    static SERVER: OnceLock<Server> = OnceLock::new();
    static MONTH: OnceLock<Database<'static>> = OnceLock::new();
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let server = SERVER.get_or_init(repair::server);
    if server.query("SELECT 1").is_err() {
        server.restart();
    }
    let month = MONTH.get_or_init(|| backfill_month(server));
    (halved(copy_of(month, name)), turn)
}

/// A repair in small parts, one segment after the other.
fn slow_repair(database: &Database) -> Tool {
    repair(database).args(["--batch-size", "60", "--concurrency", "1"])
}

fn state(tool: &Tool) -> PathBuf {
    tool.state_dir().join(format!("{SAMPLE_PARTITION}-repair"))
}

/// The repair that goes on with what it began, if it has begun.
fn with_resume(tool: Tool) -> Tool {
    let tool = tool.without_arg("--resume");
    match state(&tool).join("checkpoint").exists() {
        true => tool.arg("--resume"),
        false => tool,
    }
}

fn rows(database: &Database) -> u64 {
    ask_number(database, "SELECT count() FROM events_full")
}

/// Kills a repair once it has written so many rows.
fn kill_after(database: &Database, tool: &Tool, written: u64) {
    let before = rows(database);
    let mut running = tool.spawn();
    wait_for_rows(&mut running, database, before + written);
    running.kill();
    running.wait();
    assert!(state(tool).join("checkpoint").exists());
}

#[test]
fn a_repair_that_was_killed_goes_on() {
    let database = halved(backfilled("repair_killed"));
    let tool = slow_repair(&database);
    kill_after(&database, &tool, 100);
    let resumed = tool.arg("--resume");
    resumed.run().assert_code(0);
    assert_eq!(resumed.report()["resumed"], true);
    assert!(!state(&resumed).exists());
    assert_each_once(&database);
    assert_equal(&database);
}

#[test]
fn a_repair_that_is_told_to_end_says_how_to_go_on() {
    let database = halved(backfilled("repair_ended"));
    let tool = slow_repair(&database);
    let before = rows(&database);
    let mut running = tool.spawn();
    wait_for_rows(&mut running, &database, before + 100);
    running.terminate();
    let outcome = running.wait();
    outcome.assert_code(143).assert_stderr_contains("--resume");
    assert!(rows(&database) > before);
    tool.arg("--resume").run().assert_code(0);
    assert_each_once(&database);
    assert_equal(&database);
}

/// What is written after an interruption is as its trace is by then.
#[test]
fn a_trace_that_is_unpublished_meanwhile_is_not_published_by_a_repair_that_is_resumed() {
    for (name, of_lookup) in [("asked_for", None), ("loaded", Some("--no-remote-lookup"))] {
        let database = halved(backfilled(&format!("repair_unpublished_{name}")));
        let proxy = Proxy::start(database.server.http_port());
        // Otherwise the server would have all rows when the first ones are written.
        let slowly = Action::Slow {
            bytes: 16 * 1024,
            pause: Duration::from_millis(50),
        };
        let slow = proxy.arm(Fault::once("INSERT INTO", Place::RequestByte(0), slowly).always());
        let tool = slow_repair(&database)
            .args(of_lookup)
            .env("CLICKHOUSE_URL", proxy.url());
        kill_after(&database, &tool, 300);
        slow.lift();
        // What has arrived is still written.
        wait_for_end_of_queries(&database);
        execute(
            &database,
            "CREATE TABLE before AS events_full ENGINE = Memory",
        );
        execute(&database, "INSERT INTO before SELECT * FROM events_full");
        execute(
            &database,
            "INSERT INTO traces SELECT t.* REPLACE (false AS public, now64(3) AS event_ts) \
             FROM (SELECT * FROM traces ORDER BY event_ts DESC, is_deleted DESC \
                 LIMIT 1 BY project_id, id) AS t WHERE t.public",
        );
        let key = "project_id, trace_id, span_id, start_time";
        let later = format!("({key}) NOT IN (SELECT {key} FROM before)");
        let public = "public AND trace_id IN (SELECT id FROM traces FINAL WHERE NOT public)";
        tool.arg("--resume").run().assert_code(0);
        let count = |condition: &str| {
            ask_number(
                &database,
                &format!("SELECT count() FROM events_full WHERE {condition}"),
            )
        };
        assert!(count(&later) > 1_000, "{name}: all was written before");
        let written_before = count(&format!("{public} AND NOT ({later})"));
        assert!(written_before > 0, "{name}: nothing was public");
        assert_eq!(count(&format!("{public} AND {later}")), 0, "{name}");
        assert_each_once(&database);
        // What was written before is stale, and another repair mends it.
        repair(&database).arg("--optimize").run().assert_code(0);
        assert_eq!(count(public), 0, "{name}");
        assert_equal(&database);
    }
}

#[test]
fn an_insert_whose_answer_is_lost_is_not_written_twice() {
    let (database, _turn) = mortal("repair_lost_answers");
    database.server.unless_it_crashes(|| {
        let database = halved(copy_of(&database, "repair_lost_answers_again"));
        let proxy = Proxy::start(database.server.http_port());
        let cuts = [0, 1, 2, 3].map(|skipped| {
            let cut = Fault::once("INSERT INTO", Place::ResponseByte(0), Action::Cut);
            proxy.arm(cut.skip(skipped))
        });
        let tool = slow_repair(&database).env("CLICKHOUSE_URL", proxy.url());
        tool.run().assert_code(0);
        let happened: u64 = cuts.iter().map(|cut| cut.count()).sum();
        assert_eq!(happened, 4, "answers were lost");
        assert_each_once(&database);
        assert_equal(&database);
    });
}

#[test]
fn a_repair_that_a_lost_answer_ended_writes_nothing_twice_when_it_is_resumed() {
    let (database, _turn) = mortal("repair_lost_for_good");
    database.server.unless_it_crashes(|| {
        let database = halved(copy_of(&database, "repair_lost_for_good_again"));
        let proxy = Proxy::start(database.server.http_port());
        let mut tool = slow_repair(&database)
            .env("CLICKHOUSE_URL", proxy.url())
            .env("MAX_RETRIES", "0");
        for skipped in [0, 1] {
            let cut = Fault::once("INSERT INTO", Place::ResponseByte(0), Action::Cut);
            let cut = proxy.arm(cut.skip(skipped));
            tool.run().assert_one_error(1, &["continue with --resume"]);
            assert_eq!(cut.count(), 1);
            tool = with_resume(tool);
        }
        tool.run().assert_code(0);
        assert_each_once(&database);
        assert_equal(&database);
    });
}

#[test]
fn a_server_killed_at_random_moments_of_a_repair_costs_no_event_and_doubles_none() {
    let (database, _turn) = mortal("repair_server_killed");
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    // Now a repair outlasts the server's absence, and now it does not.
    let mut tool = slow_repair(&database).env("MAX_RETRIES", "3");
    slow_down(&database, 0.2);
    let mut running = tool.spawn();
    let mut in_the_midst = 0;
    for kill in 0..SERVER_KILLS {
        let before = rows(&database);
        while running.is_running() && kill % 2 == 0 && rows(&database) == before {
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(Duration::from_millis(random.u64(0..700)));
        if !running.is_running() {
            break;
        }
        in_the_midst += 1;
        database.server.kill();
        thread::sleep(Duration::from_millis(random.u64(0..1_500)));
        database.server.restart();
        if !running.is_running() {
            running.wait().assert_code(1);
            tool = with_resume(tool);
            running = tool.spawn();
        }
    }
    assert!(
        in_the_midst >= SERVER_KILLS / 2,
        "too few kills came in time"
    );
    speed_up(&database);
    let mut outcome = running.wait();
    for _ in 0..5 {
        if outcome.code == Some(0) {
            break;
        }
        outcome.assert_code(1);
        tool = with_resume(tool);
        outcome = tool.run();
    }
    outcome.assert_code(0);
    assert_each_once(&database);
    assert_equal(&database);
}
