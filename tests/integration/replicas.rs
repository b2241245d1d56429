//! Several addresses, and the same tables behind another one.

use crate::support::differential::{
    Specification, ask_number, assert_complete, execute, keep_versions_apart, slow_down, speed_up,
    wait_for_event,
};
use crate::support::proxy::Proxy;
use crate::support::replicas::{copy_rows, copy_tables, tables};
use crate::support::{Database, Options, SAMPLE_PARTITION, Server, Tool};

/// Observations of a month.
const OBSERVATIONS: u64 = 3_000;

/// Sources of a month with what its events must be in the table `expected`.
fn month(name: &str) -> Database<'static> {
    let database = Server::shared().sample_month(name, OBSERVATIONS);
    Specification::current().fill(&database, SAMPLE_PARTITION, "events_full", "expected");
    keep_versions_apart(&database, &["events_full"]);
    database
}

fn tool(database: &Database, addresses: &[String]) -> Tool {
    Tool::new(database)
        .env("CLICKHOUSE_URL", addresses.join(","))
        .args(["--partition", SAMPLE_PARTITION])
        .args(["--batch-size", "500", "--segment-rows", "500"])
}

/// An address at which nobody listens.
fn nowhere() -> String {
    // Port 1 needs rights to be listened at, and has no use.
    "http://127.0.0.1:1".to_owned()
}

#[test]
fn an_address_at_which_nobody_answers_is_left_out() {
    for dead_first in [true, false] {
        let database = month("replicas_left_out");
        let mut addresses = vec![nowhere(), database.server.url()];
        if !dead_first {
            addresses.reverse();
        }
        let outcome = tool(&database, &addresses).run();
        outcome.assert_code(0);
        assert_complete(&database, "events_full");
    }
}

#[test]
fn where_no_address_answers_all_of_them_are_named() {
    let database = month("replicas_nobody");
    let other = "http://127.0.0.1:2".to_owned();
    let outcome = tool(&database, &[nowhere(), other]).run();
    outcome.assert_one_error(2, &["http://127.0.0.1:1/", "http://127.0.0.1:2/"]);
}

#[test]
fn a_run_goes_on_through_another_address_when_one_is_gone() {
    let database = month("replicas_gone");
    slow_down(&database, 0.5);
    let one = Proxy::start(database.server.http_port());
    let other = Proxy::start(database.server.http_port());
    let tool = tool(&database, &[one.url(), other.url()]).args(["--concurrency", "2"]);
    let mut run = tool.spawn();
    wait_for_event(&mut run, &database);
    drop(one);
    speed_up(&database);
    run.wait().assert_code(0);
    assert_complete(&database, "events_full");
    assert_each_event_once(&database);
}

#[test]
fn reads_and_inserts_are_spread_over_the_addresses() {
    let database = month("replicas_spread");
    let proxies = [(); 2].map(|()| Proxy::start(database.server.http_port()));
    let addresses = proxies.each_ref().map(Proxy::url);
    // A segment of each source.
    let tool = tool(&database, &addresses).arg("--root-spans");
    tool.run().assert_code(0);
    for proxy in &proxies {
        for statement in ["INSERT INTO", "AS one WHERE"] {
            assert!(!proxy.exchanges(statement).is_empty(), "{statement}");
        }
    }
    assert_each_event_once(&database);
}

#[test]
fn servers_that_do_not_share_their_tables_are_refused() {
    let database = month("replicas_apart");
    let server = Server::start(Options::default());
    let addresses = [database.server.url(), server.url()];
    server
        .query(&format!("CREATE DATABASE `{}`", database.name))
        .unwrap();
    let apart = Database {
        server: &server,
        name: database.name.clone(),
    };
    apart.load_schema();
    let outcome = tool(&database, &addresses).run();
    outcome.assert_one_error(2, &["CLICKHOUSE_URL", "different tables"]);

    execute(&apart, &format!("DROP DATABASE `{}` SYNC", database.name));
    copy_tables(&database, &apart, &tables(&database));
    let outcome = tool(&database, &addresses).run();
    outcome.assert_one_error(2, &["CLICKHOUSE_URL", "2 servers", "ReplacingMergeTree"]);
    assert_eq!(
        ask_number(&database, "SELECT count() FROM events_full"),
        0,
        "nothing may be written"
    );
}

/// A load balancer leads to another replica, or has another address: what the checkpoint speaks of is
/// the tables.
#[test]
fn a_run_goes_on_at_another_server_that_has_the_same_tables() {
    let database = month("replicas_elsewhere");
    slow_down(&database, 0.5);
    let server = Server::start(Options::default());
    let replica = Database {
        server: &server,
        name: database.name.clone(),
    };
    let first = tool(&database, &[database.server.url()]).args(["--concurrency", "1"]);
    let mut run = first.spawn();
    wait_for_event(&mut run, &database);
    run.terminate();
    run.wait().assert_code(143);
    speed_up(&database);
    let before = ask_number(&database, "SELECT count() FROM events_full");
    let tables = tables(&database);
    copy_tables(&database, &replica, &tables);
    copy_rows(&database, &replica, &tables);

    let resumed = first.env("CLICKHOUSE_URL", server.url()).arg("--resume");
    resumed.run().assert_code(0);
    assert_eq!(resumed.report()["resumed"], true);
    let written = ask_number(&replica, "SELECT count() FROM events_full") - before;
    assert!(written > 0, "nothing was left to do");
    assert_each_event_once(&replica);
    assert_complete(&replica, "events_full");
}

/// Whoever reads without FINAL sees each event once.
fn assert_each_event_once(database: &Database) {
    let again = "SELECT count() - uniqExact(project_id, trace_id, span_id) FROM events_full";
    assert_eq!(ask_number(database, again), 0, "events stand twice");
}
