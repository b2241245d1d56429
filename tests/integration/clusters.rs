//! A cluster of two ClickHouse shards, each of which is a real server: all that one process would write
//! is written, by a process for each shard, on the shard where the row it is made of lies.

use std::thread;
use std::time::{Duration, Instant};

use crate::support::differential::{
    Specification, add_experiments, ask_number, assert_equal, execute,
};
use crate::support::{
    Database, Options, SAMPLE_PARTITION, Server, Tool, free_ports, move_observations, move_traces,
};

const OBSERVATIONS: u64 = 20_000;
/// The tables that are read and written.
const TABLES: [&str; 5] = [
    "observations",
    "traces",
    "dataset_run_items_rmt",
    "events_full",
    "events_core",
];

/// Two servers with the cluster `default`, of a shard on each. The database `local` has the tables, and
/// `shared` the Distributed ones, by keys that the test names.
struct Cluster {
    servers: [Server; 2],
}

impl Cluster {
    fn start() -> Self {
        let [http_port, tcp_port] = free_ports();
        let shard = |host: &str| {
            format!("<shard><replica><host>{host}</host><port>{tcp_port}</port></replica></shard>")
        };
        let hosts = ["127.0.0.1", "127.0.0.2"];
        let shards: String = hosts.iter().map(|host| shard(host)).collect();
        let servers = hosts.map(|host| {
            Server::start(Options {
                config: format!("<remote_servers><default>{shards}</default></remote_servers>"),
                http_port: Some(http_port),
                tcp_port: Some(tcp_port),
                host: Some(host),
                ..Options::default()
            })
        });
        let cluster = Self { servers };
        for server in &cluster.servers {
            server.query("CREATE DATABASE local").unwrap();
            Database {
                server,
                name: "local".to_owned(),
            }
            .load_schema();
        }
        cluster
    }

    /// A database with Distributed tables, on both servers.
    fn distribute(&self, name: &str, key: impl Fn(&str) -> String) -> Database<'_> {
        for server in &self.servers {
            server.query(&format!("CREATE DATABASE {name}")).unwrap();
            for table in TABLES {
                let distributed = format!(
                    "CREATE TABLE {name}.{table} AS local.{table} \
                     ENGINE = Distributed(default, local, {table}, {})",
                    key(table)
                );
                server.query(&distributed).unwrap();
            }
        }
        Database {
            server: &self.servers[0],
            name: name.to_owned(),
        }
    }

    /// A plain database on the first server with a month, whose rows are then written through the
    /// Distributed tables.
    fn fill(&self, distributed: &Database) -> Database<'_> {
        let whole = self.servers[0].sample_month("whole", OBSERVATIONS);
        move_traces(&whole);
        move_observations(&whole);
        for table in ["traces", "observations", "dataset_run_items_rmt"] {
            execute(
                &whole,
                &format!(
                    "INSERT INTO {}.{table} SELECT * FROM {table} \
                     SETTINGS distributed_foreground_insert = 1",
                    distributed.name
                ),
            );
        }
        whole
    }

    fn rows(&self, table: &str) -> [u64; 2] {
        [0, 1].map(|shard| {
            let rows = self.servers[shard].query(&format!("SELECT count() FROM local.{table}"));
            rows.unwrap().trim().parse().unwrap()
        })
    }
}

fn tool(database: &Database) -> Tool {
    Tool::new(database)
        .with_defaults()
        .args(["--partition", SAMPLE_PARTITION, "--all-shards"])
}

#[test]
fn every_shard_of_a_cluster_gets_the_events_of_its_own_rows() {
    every_shard_gets_its_events("embedded");
}

#[test]
fn every_shard_of_a_cluster_makes_the_events_of_its_own_rows_itself() {
    every_shard_gets_its_events("clickhouse");
}

fn every_shard_gets_its_events(engine: &str) {
    let cluster = Cluster::start();
    let shared = cluster.distribute("shared", |_| "cityHash64(project_id)".to_owned());
    let whole = cluster.fill(&shared);
    let of_shards = cluster.rows("observations");
    assert!(of_shards.iter().all(|&rows| rows > 1_000), "{of_shards:?}");

    let without = Tool::new(&shared).args(["--partition", SAMPLE_PARTITION]);
    without
        .run()
        .assert_one_error(2, &["Distributed", "--all-shards"]);
    let unknown = tool(&shared).args(["--cluster", "nowhere"]);
    unknown.run().assert_one_error(2, &["nowhere", "--cluster"]);

    // A signal reaches all, and all go on.
    let tool = tool(&shared)
        .args(["--segment-rows", "2000"])
        .env("ENGINE", engine);
    let mut run = tool.spawn();
    let started = Instant::now();
    while cluster.rows("events_full") == [0, 0] {
        assert!(run.is_running() && started.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(10));
    }
    run.terminate();
    let outcome = run.wait();
    if outcome.code != Some(0) {
        outcome.assert_code(143);
    }
    let tool = tool.arg("--resume-or-start");
    let outcome = tool.run();
    outcome.assert_code(0);
    outcome.assert_stderr_contains("shard 1: ");
    outcome.assert_stderr_contains("shard 2: ");
    assert!(outcome.stdout.contains("Shard 2\n"), "{}", outcome.stdout);
    for shard in [1, 2] {
        let state = tool
            .state_dir()
            .join(format!("shard-{shard}/202406/checkpoint"));
        assert!(state.exists());
        assert!(
            tool.directory()
                .join(format!("report.shard-{shard}.json"))
                .exists()
        );
    }

    Specification::current().fill(&whole, SAMPLE_PARTITION, "events_full", "expected");
    Specification::of_root_spans().add(&whole, SAMPLE_PARTITION, "expected");
    add_experiments(&whole, "expected");
    execute(
        &whole,
        "CREATE TABLE written AS events_full ENGINE = Memory",
    );
    execute(
        &whole,
        "INSERT INTO written SELECT * FROM shared.events_full",
    );
    assert_equal(&whole, "expected", "written");
    let core = ask_number(&whole, "SELECT count() FROM shared.events_core");
    assert_eq!(core, ask_number(&whole, "SELECT count() FROM expected"));

    let verify = Tool::new(&shared)
        .with_defaults()
        .args(["verify", "--all-shards"]);
    let verify = verify
        .args(["--partition", SAMPLE_PARTITION])
        .env("STATE_DIR", "state");
    verify.run().assert_code(0);
    let other = &cluster.servers[1];
    other
        .query(
            "ALTER TABLE local.events_full DELETE WHERE span_id < '4' SETTINGS mutations_sync = 2",
        )
        .unwrap();
    let outcome = verify.run();
    outcome.assert_one_error(1, &["shard 2"]);
}

#[test]
fn traces_on_another_shard_than_their_observations_are_found_out_before_anything_is_written() {
    let cluster = Cluster::start();
    let shared = cluster.distribute("shared", |table| match table {
        "traces" | "observations" => "cityHash64(id)".to_owned(),
        _ => "rand()".to_owned(),
    });
    cluster.fill(&shared);
    tool(&shared)
        .run()
        .assert_one_error(2, &["lie on shard", "project_id"]);
    assert_eq!(cluster.rows("events_full"), [0, 0]);
}

#[test]
fn items_on_another_shard_than_their_traces_are_found_out_unless_nobody_asks_for_them() {
    let cluster = Cluster::start();
    let shared = cluster.distribute("shared", |table| match table {
        "dataset_run_items_rmt" => "cityHash64(dataset_item_id)".to_owned(),
        _ => "cityHash64(project_id)".to_owned(),
    });
    cluster.fill(&shared);
    let refused = tool(&shared).run();
    refused.assert_one_error(2, &["dataset_run_items_rmt on shard", "project_id"]);
    assert_eq!(cluster.rows("events_full"), [0, 0]);
    let without = tool(&shared).args(["--no-experiments", "--dry-run"]);
    without.run().assert_code(0);
}

#[test]
fn a_shard_without_rows_of_the_month_is_left_out() {
    let cluster = Cluster::start();
    // All projects of the month are on one shard.
    let shared = cluster.distribute("shared", |_| "0".to_owned());
    cluster.fill(&shared);
    let outcome = tool(&shared).run();
    outcome
        .assert_code(0)
        .assert_stderr_contains("shard 2 has no rows for these months");
    let [first, second] = cluster.rows("events_full");
    assert!(first > 1_000 && second == 0, "{first} {second}");
    // A trace is nothing to do where no root spans are written.
    let trace = "INSERT INTO local.traces (id, project_id, timestamp, event_ts) \
                 VALUES ('alone', 'project', '2024-06-03 10:00:00', '2024-06-03 10:00:00')";
    cluster.servers[1].query(trace).unwrap();
    let without = tool(&shared).args(["--no-root-spans", "--dry-run"]).run();
    without
        .assert_code(0)
        .assert_stderr_contains("shard 2 has no rows for these months");
    let none = Tool::new(&shared).args(["--partition", "202301", "--all-shards"]);
    none.run().assert_one_error(2, &["no shard", "202301"]);
}
