//! Two servers that stand for replicas, one of which goes away, or takes the place of the other.
//!
//! Their tables have the same identities, and their sources the same rows, but nothing copies what is
//! written at one to the other. So an event must stand in one of them, and in one only: what the two
//! have together is compared. This tests all but what replication itself answers for: that rows which
//! one server has committed without a word are known to the other. No connection is cut here while that
//! can be so, except where the run then has to wait for that very server.

use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::differential::{
    Specification, ask_number, assert_equal, execute, slow_down, wait_for_event,
};
use crate::support::proxy::{Action, FOREVER, Fault, Place, Proxy};
use crate::support::replicas::{copy_rows, copy_table, copy_tables, rows_of};
use crate::support::{Database, Options, SAMPLE_PARTITION, Server, Tool};

/// Observations of a month, which make one segment; its root spans make another one.
const OBSERVATIONS: u64 = 3_000;
/// What is asked for traces to load, for observations, and for traces to make root spans of; the insert;
/// and what is asked for keys.
const TRACES: &str = "`traces` AS t WHERE";
const READING: &str = "`observations` AS o FINAL";
const ROOTS: &str = "`traces` AS t FINAL";
const INSERT: &str = "INSERT INTO";
const KEYS: &str = "ORDER BY c0, c1, c2, c3";
/// How long something is waited for that comes within seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// A month at two servers, as `one` and `other` have it.
struct Replicas {
    one: Database<'static>,
    other: Database<'static>,
}

impl Replicas {
    fn new(name: &str, servers: [&'static Server; 2]) -> Self {
        let one = servers[0].sample_month(name, OBSERVATIONS);
        let other = Database {
            server: servers[1],
            name: one.name.clone(),
        };
        let sources = ["traces", "observations", "dataset_run_items_rmt"].map(str::to_owned);
        copy_tables(&one, &other, &sources);
        // Merged at another time, as replicas are.
        copy_rows(&one, &other, &sources);
        for table in ["events_full", "events_core", "events_core_mv"] {
            copy_table(&one, &other, table);
        }
        Self { one, other }
    }

    /// Panics unless both together have each event once, in either table.
    #[track_caller]
    fn assert_each_event_once(&self) {
        let Self { one, other } = self;
        // By now, since a restart would have emptied it.
        Specification::current().fill(one, SAMPLE_PARTITION, "events_full", "expected");
        Specification::of_root_spans().add(one, SAMPLE_PARTITION, "expected");
        execute(one, "CREATE TABLE both AS events_full ENGINE = Memory");
        execute(one, "INSERT INTO both SELECT * FROM events_full");
        let of_other = rows_of(other, "events_full");
        execute(one, &format!("INSERT INTO both SELECT * FROM {of_other}"));
        assert_equal(one, "expected", "both");
        let in_core = [one, other].map(|replica| rows(replica, "events_core"));
        let expected = rows(one, "expected");
        assert_eq!(in_core.iter().sum::<u64>(), expected, "{in_core:?}");
    }
}

fn rows(database: &Database, table: &str) -> u64 {
    ask_number(database, &format!("SELECT count() FROM {table}"))
}

/// Two servers that all tests share which leave them alive.
fn servers() -> [&'static Server; 2] {
    static SERVERS: OnceLock<[Server; 2]> = OnceLock::new();
    let [one, other] = SERVERS.get_or_init(|| [(); 2].map(|()| Server::start(Options::default())));
    [one, other]
}

/// Inserts of a segment each, which the server writes as one part at their end.
fn tool(replicas: &Replicas, addresses: &[String]) -> Tool {
    Tool::new(&replicas.one)
        .env("CLICKHOUSE_URL", addresses.join(","))
        .args(["--partition", SAMPLE_PARTITION])
        .args(["--root-spans", "--concurrency", "1"])
}

#[test]
fn a_load_balancer_that_leads_to_another_replica_in_the_middle_of_work_costs_nothing() {
    let replicas = Replicas::new("switched", servers());
    let proxy = Proxy::between(servers().map(Server::http_port));
    let switches = [
        (TRACES, 1, Place::ResponseBodyByte(100)),
        (READING, 0, Place::ResponseBodyByte(20_000)),
        // Of the next two attempts.
        (INSERT, 0, Place::RequestBodyByte(20_000)),
        (KEYS, 0, Place::ResponseByte(0)),
        (INSERT, 1, Place::RequestByte(0)),
        (ROOTS, 0, Place::ResponseByte(0)),
    ];
    let switches = switches.map(|(statement, skipped, place)| {
        proxy.arm(Fault::once(statement, place, Action::Switch).skip(skipped))
    });
    tool(&replicas, &[proxy.url()]).run().assert_code(0);
    for (number, switch) in switches.iter().enumerate() {
        assert_eq!(switch.count(), 1, "switch {number}");
    }
    for replica in [&replicas.one, &replicas.other] {
        assert!(rows(replica, "events_full") > 0, "both are written to");
    }
    replicas.assert_each_event_once();
}

/// A replica that is behind has not got some traces yet when they are loaded. They are asked for again
/// before their observations are written without them.
#[test]
fn traces_that_a_replica_had_not_got_yet_are_found_at_another() {
    let replicas = Replicas::new("behind", servers());
    let late = "DELETE FROM traces WHERE sipHash64(id) % 5 = 0";
    execute(&replicas.other, late);
    let lacking = rows(&replicas.one, "traces") - rows(&replicas.other, "traces");
    assert!(lacking > 10, "{lacking}");
    let proxy = Proxy::between(servers().map(Server::http_port));
    // That it leads to the one that is behind.
    let first = proxy.arm(Fault::once(TRACES, Place::RequestByte(0), Action::Switch));
    let then = proxy.arm(Fault::once(READING, Place::ResponseByte(0), Action::Switch));
    let tool = tool(&replicas, &[proxy.url()]);
    tool.run().assert_code(0);
    assert_eq!((first.count(), then.count()), (1, 1));
    replicas.assert_each_event_once();
}

/// Two servers of a test, of which it kills one.
fn mortal_servers() -> [&'static Server; 2] {
    // They end together with the test binary.
    [(); 2].map(|()| &*Box::leak(Box::new(Server::start(Options::default()))))
}

/// With tables that are not replicated two servers would be refused, so one is away when a run begins.
fn start_without<T>(server: &Server, start: impl FnOnce() -> T) -> T {
    server.kill();
    let started = start();
    server.restart();
    started
}

#[test]
fn a_run_goes_on_at_the_other_server_when_one_is_killed_that_writes_nothing() {
    let servers = mortal_servers();
    let replicas = Replicas::new("killed", servers);
    let way = Proxy::start(servers[0].http_port());
    let reading = way.arm(Fault::once(
        ROOTS,
        Place::ResponseByte(0),
        Action::Stall(FOREVER),
    ));
    let tool = tool(&replicas, &[way.url(), servers[1].url()]);
    let mut run = start_without(servers[1], || {
        let mut run = tool.spawn();
        let started = Instant::now();
        while reading.count() == 0 {
            if !run.is_running() {
                panic!("the run ended too early\n{}", run.wait().stderr);
            }
            assert!(started.elapsed() < PATIENCE);
            thread::sleep(Duration::from_millis(10));
        }
        run
    });
    let before = rows(&replicas.one, "events_full");
    servers[0].kill();
    drop(way);
    assert!(run.is_running());
    run.wait().assert_code(0);

    servers[0].restart();
    assert_eq!(rows(&replicas.one, "events_full"), before);
    assert!(before > 0 && rows(&replicas.other, "events_full") > 0);
    replicas.assert_each_event_once();
}

#[test]
fn what_a_killed_server_may_have_written_is_not_sent_to_the_other() {
    let servers = mortal_servers();
    let replicas = Replicas::new("killed_writing", servers);
    slow_down(&replicas.one, 2.0);
    let addresses = servers.map(Server::url);
    let tool = tool(&replicas, &addresses).env("MAX_RETRIES", "1");
    let run = start_without(servers[1], || {
        let mut run = tool.spawn();
        wait_for_event(&mut run, &replicas.one);
        servers[0].kill();
        run
    });
    let outcome = run.wait();
    let words = [
        "waiting for earlier inserts to end",
        "continue with --resume",
    ];
    outcome.assert_one_error(1, &words);
    assert_eq!(rows(&replicas.other, "events_full"), 0);

    // The one that may have written is back. (With both, the tables would be refused.)
    servers[0].restart();
    let tool = tool.env("CLICKHOUSE_URL", &addresses[0]).arg("--resume");
    let before = rows(&replicas.one, "events_full");
    assert!(before > 0, "nothing had been written");
    execute(&replicas.one, "TRUNCATE TABLE brake");
    tool.run().assert_code(0);
    replicas.assert_each_event_once();
}

/// A server that is gone is asked again after half a minute, which may be for an insert. One that has
/// not even reached it leaves nothing there that would have to be waited for.
#[test]
fn an_insert_that_does_not_reach_its_server_is_sent_to_the_other() {
    let replicas = Replicas::new("unreached", servers());
    let way = Proxy::start(servers()[0].http_port());
    // Port 1 needs rights to be listened at, and has no use.
    let addresses = [way.url(), "http://127.0.0.1:1".to_owned()];
    // The second segment, whose turn it is with the second server, is read from the first.
    let half_a_minute = Action::Stall(Duration::from_secs(31));
    let reading = way.arm(Fault::once(ROOTS, Place::ResponseByte(0), half_a_minute));
    let outcome = tool(&replicas, &addresses).env("MAX_RETRIES", "1").run();
    outcome
        .assert_code(0)
        .assert_stderr_contains("events_full failed: the connection to ClickHouse failed")
        .assert_stderr_contains("trying again in");
    assert_eq!(reading.count(), 1);
    replicas.assert_each_event_once();
}
