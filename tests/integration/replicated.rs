//! Tables of the `Replicated…` engines, with a real Keeper or without one. The embedded server cannot be a
//! replica to others, so that its replicated tables are read-only in either case: what is tested is what
//! a run makes of that, that it reads such tables, and that what it asks of replicas is understood.

use crate::support::differential::{Specification, ask, ask_number, assert_complete, execute};
use crate::support::proxy::Proxy;
use crate::support::zookeeper::{ZooKeeper, keeper_at};
use crate::support::{
    Database, OPERATOR, Options, Outcome, SAMPLE_PARTITION, Server, Tool, free_ports,
};

/// All that a run reads or writes; a view copies from `events_full` to `events_core`.
const TABLES: [&str; 4] = ["traces", "observations", "events_full", "events_core"];

/// Port 1 needs rights to be listened at, and has no use.
const NOWHERE: u16 = 1;

/// The month of a server with replicated tables, and what its events must be.
fn month<'server>(server: &'server Server, name: &str) -> Database<'server> {
    let database = server.database(name);
    database.load_small_month();
    Specification::current().fill(&database, SAMPLE_PARTITION, "events_full", "expected");
    attach(&database, &TABLES, "REPLICATED");
    let engines = "SELECT countIf(engine = 'ReplicatedReplacingMergeTree') FROM system.tables \
                   WHERE database = currentDatabase()";
    assert_eq!(ask_number(&database, engines), TABLES.len() as u64);
    database
}

/// Makes replicated tables of ordinary ones, or the other way: their rows and identities stay.
fn attach(database: &Database, tables: &[&str], how: &str) {
    for table in tables {
        execute(database, &format!("DETACH TABLE {table} SYNC"));
        execute(database, &format!("ATTACH TABLE {table} AS {how}"));
    }
}

fn server(keeper: String) -> Server {
    Server::start(Options {
        config: keeper,
        ..Options::default()
    })
}

fn tool(database: &Database) -> Tool {
    Tool::new(database)
        .env("MAX_RETRIES", "2")
        .args(["--partition", SAMPLE_PARTITION])
}

/// Panics unless the run has tried often enough, says which table is read-only and where to look, has
/// written nothing, and is completed once the tables are not read-only any more.
#[track_caller]
fn assert_waited_and_resumable(database: &Database, tool: Tool, outcome: &Outcome, words: &[&str]) {
    let said = [
        "(3 tries)",
        &format!("{}.events_full", database.name),
        "is read-only: SELECT",
        "FROM system.replicas WHERE is_readonly",
        "continue with --resume",
    ];
    outcome.assert_one_error(1, &[words, &said].concat());
    outcome.assert_stderr_contains("trying again in");
    for table in ["events_full", "events_core"] {
        assert_eq!(
            ask_number(database, &format!("SELECT count() FROM {table}")),
            0
        );
    }
    let names = ask(
        database,
        "SELECT arrayStringConcat(groupArray(table), ' ') FROM system.replicas \
         WHERE is_readonly AND database = currentDatabase() AND table = 'events_full'",
    );
    assert_eq!(
        names, "events_full",
        "what the sentence names tells the table"
    );

    attach(database, &TABLES, "NOT REPLICATED");
    let tool = tool.arg("--resume");
    tool.run().assert_code(0);
    assert_eq!(tool.report()["resumed"], true);
    assert_complete(database, "events_full");
}

#[test]
fn a_target_whose_replica_is_read_only_is_waited_for_and_named() {
    let keeper = ZooKeeper::start();
    let server = server(keeper.config());
    let database = month(&server, "read_only");
    let tool = tool(&database);
    let outcome = tool.run();
    assert_waited_and_resumable(
        &database,
        tool,
        &outcome,
        &["error 242", "TABLE_IS_READ_ONLY"],
    );
}

/// As after a restart of the server while Keeper is away.
#[test]
fn a_target_whose_replica_has_not_reached_keeper_is_waited_for_and_named() {
    let server = server(keeper_at(NOWHERE));
    let database = month(&server, "not_initialized");
    let tool = tool(&database);
    let outcome = tool.run();
    assert_waited_and_resumable(&database, tool, &outcome, &["error 667", "NOT_INITIALIZED"]);
}

/// What `catch_up` asks, and what it makes of the answer.
#[test]
fn where_there_are_several_addresses_the_replica_is_asked_to_catch_up() {
    let keeper = ZooKeeper::start();
    let server = server(keeper.config());
    let database = month(&server, "granted");
    let ways = [(); 2].map(|()| Proxy::start(server.http_port()));
    let addresses = ways.each_ref().map(Proxy::url).join(",");
    let tool = tool(&database).env("CLICKHOUSE_URL", addresses);
    let asked =
        |statement: &str| -> usize { ways.iter().map(|way| way.exchanges(statement).len()).sum() };

    // What is read first: what this replica has not got yet would be missed.
    let sync = format!(
        "SYSTEM SYNC REPLICA `{}`.`traces` LIGHTWEIGHT",
        database.name
    );
    let outcome = tool.run();
    outcome.assert_one_error(1, &["error 242", "traces", "is_readonly"]);
    outcome.assert_stderr_contains("trying again in");
    assert!(asked(&sync) > 0);
    assert_eq!(
        asked("log_pointer"),
        0,
        "it was allowed to wait on the server"
    );
    // Then what is written to, and what is read next.
    let tool = tool.arg("--resume");
    for (has_caught_up, next) in [("traces", "events_full"), ("events_full", "observations")] {
        attach(&database, &[has_caught_up], "NOT REPLICATED");
        let outcome = tool.run();
        outcome.assert_one_error(1, &["error 242", next, "is_readonly"]);
    }

    // Who may not wait on the server looks at the replica's queue.
    let (name, password) = OPERATOR;
    let tool = tool
        .env("CLICKHOUSE_USER", name)
        .env("CLICKHOUSE_PASSWORD", password);
    let replica = format!(
        "the replica of `{}`.`observations` is read-only",
        database.name
    );
    tool.run()
        .assert_one_error(1, &["error 242", &replica, "is_readonly"]);
    assert!(asked("log_pointer") > 0);
    assert_eq!(ask_number(&database, "SELECT count() FROM events_full"), 0);
}

/// How far behind: a run slows down where one of them is too far, whichever it is.
#[test]
fn all_replicas_of_the_target_are_asked_and_one_that_does_not_answer_is_left_out() {
    let keeper = ZooKeeper::start();
    let [tcp_port] = free_ports();
    let replica =
        |port: u16| format!("<replica><host>127.0.0.1</host><port>{port}</port></replica>");
    let server = Server::start(Options {
        config: format!(
            "{}<remote_servers><default><shard>{}{}</shard></default></remote_servers>",
            keeper.config(),
            replica(tcp_port),
            replica(NOWHERE),
        ),
        tcp_port: Some(tcp_port),
        ..Options::default()
    });
    let database = month(&server, "all_replicas");
    // So many tries that the server is looked at meanwhile.
    let tool = tool(&database).env("MAX_RETRIES", "4");
    tool.run().assert_one_error(1, &["error 242"]);
    let asked = |columns: &str| {
        ask(&database, "SYSTEM FLUSH LOGS query_log");
        let sql = format!(
            "SELECT {columns} FROM system.query_log WHERE is_initial_query \
             AND query LIKE 'SELECT toFloat64(maxIf(%clusterAllReplicas(''default''%' \
             AND query LIKE '%zookeeper_path IN (%'"
        );
        ask(&database, &sql)
    };
    assert_eq!(
        asked("countIf(exception != ''), countIf(type = 'QueryFinish') > 0"),
        "0\t1"
    );
    let columns = "countIf(query LIKE '%maxIf(absolute_delay,%') > 0, countIf(query LIKE '%maxIf(queue_size,%') > 0";
    assert_eq!(asked(columns), "1\t1");
}

/// What a replica has not got yet would be given to it again, and stand there twice.
#[test]
fn the_table_of_a_view_is_compared_only_once_its_replica_has_caught_up() {
    let server = server(keeper_at(NOWHERE));
    let database = server.database("view");
    database.load_small_month();
    tool(&database).run().assert_code(0);

    attach(&database, &["events_core"], "REPLICATED");
    let ways = [(); 2].map(|()| Proxy::start(server.http_port()));
    let addresses = ways.each_ref().map(Proxy::url).join(",");
    // Another run, which finds that all is there, and has nothing to write.
    let outcome = tool(&database).env("CLICKHOUSE_URL", addresses).run();
    let table = format!("the replica of `{}`.`events_core`", database.name);
    outcome.assert_one_error(1, &["(3 tries)", "error 225", &table, "is_readonly"]);
}
