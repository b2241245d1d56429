//! What the benchmark promises about its peers, and the document that is computed from it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::support::repository_file;

/// What makes blocks small enough for a client, and would only slow a peer down.
const NOT_FOR_PEERS: [&str; 3] = [
    "max_block_size",
    "preferred_block_size_bytes",
    "use_query_condition_cache",
];

type Settings = BTreeMap<String, String>;

/// Of each run of a peer, or of the program, the settings of its statements as the server logged them.
fn statements(run: &serde_json::Value) -> Vec<Settings> {
    serde_json::from_value(run["settings"].clone()).unwrap()
}

#[test]
fn peers_in_the_benchmark_get_every_setting_that_the_program_gives_itself() {
    let results = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_events-backfill"));
    let outcome = Command::new("python3")
        .arg(repository_file("bench-data/bench.py"))
        .env("BENCH_PROGRAMS", program.parent().unwrap())
        .env("BENCH_RESULTS", results.path())
        .env("BENCH_PARTS", "throughput")
        .env("BENCH_OBSERVATIONS", "3000")
        .env("BENCH_PAYLOADS", "narrow")
        .env("BENCH_TARGETS", "plain")
        // Not the Python script, whose packages would have to be installed: its statements are
        // checked when it runs.
        .env(
            "BENCH_PEERS",
            "hash full_sorting_merge hash-2 limit limit-2",
        )
        .env("BENCH_REPEATS", "1")
        .output()
        .expect("python3, which the benchmark runs on, must be installed");
    let words = String::from_utf8_lossy(&outcome.stderr);
    assert!(outcome.status.success(), "{words}");

    let results = std::fs::read_to_string(results.path().join("results.json")).unwrap();
    let results: serde_json::Value = serde_json::from_str(&results).unwrap();
    let runs = &results["parts"]["throughput"]["measurements"];
    let (program, peers): (Vec<_>, Vec<_>) = (runs.as_array().unwrap().iter())
        .partition(|run| run["peer"] == "tool" && run["compression"] == "none");
    let ours: Settings = statements(program[0])
        .into_iter()
        .flatten()
        .filter(|(name, _)| !NOT_FOR_PEERS.contains(&name.as_str()))
        .collect();
    // What its inserts state, and what its reads do.
    for (name, value) in [("optimize_on_insert", "0"), ("max_query_size", "262144")] {
        assert_eq!(ours[name], value, "{ours:?}");
    }
    for name in [
        "min_insert_block_size_bytes",
        "optimize_move_to_prewhere_if_final",
    ] {
        assert!(ours.contains_key(name), "{name} {ours:?}");
    }

    let peers: Vec<_> = peers
        .into_iter()
        .filter(|run| !run["peer"].as_str().unwrap().starts_with("tool"))
        .collect();
    assert_eq!(peers.len(), 5);
    for peer in peers {
        let statements = statements(peer);
        let at_once = if peer["peer"].as_str().unwrap().ends_with("-2") {
            2
        } else {
            1
        };
        assert_eq!(statements.len(), at_once, "{peer}");
        for settings in statements {
            for (name, value) in &ours {
                assert_eq!(
                    settings.get(name),
                    Some(value),
                    "{name} of {}",
                    peer["peer"]
                );
            }
        }
    }
}

#[test]
fn the_plan_for_larger_machines_is_what_the_figures_of_the_benchmark_make_of_it() {
    let outcome = Command::new("python3")
        .arg(repository_file("bench-data/scale.py"))
        .arg("--check")
        .output()
        .expect("python3, which the benchmark runs on, must be installed");
    let words = String::from_utf8_lossy(&outcome.stderr);
    assert!(outcome.status.success(), "{words}");
}
