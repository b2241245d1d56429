//! What a run tells whoever watches it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{SAMPLE_PARTITION, Server, Tool, free_address, repository_file};

type Metrics = BTreeMap<String, f64>;

/// Status line, headers and body of a path; none where nobody answers.
fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// All metrics, by name and labels.
fn scrape(address: &str) -> Option<Metrics> {
    let answer = get(address, "/metrics")?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("application/openmetrics-text"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    let values = body.lines().filter(|line| !line.starts_with('#'));
    Some(
        values
            .map(|line| {
                let (name, value) = line.rsplit_once(' ').unwrap();
                (name.to_owned(), value.parse().unwrap())
            })
            .collect(),
    )
}

#[test]
fn metrics_of_a_run_agree_with_its_report() {
    let database = Server::shared().sample_month("metrics", 20_000);
    let address = free_address();
    let run = Tool::new(&database)
        .with_defaults()
        .args([
            "--partition",
            SAMPLE_PARTITION,
            "--metrics-listen",
            &address,
        ])
        .args(["--max-rows-per-second", "5000"]);
    let mut running = run.spawn();
    let mut scrapes = Vec::new();
    let mut has_been_ready = false;
    let started = Instant::now();
    while running.is_running() && started.elapsed() < Duration::from_secs(120) {
        scrapes.extend(scrape(&address));
        has_been_ready |= get(&address, "/readyz").is_some_and(|answer| answer.contains("200 OK"));
        if let Some(answer) = get(&address, "/healthz") {
            assert!(answer.contains("200 OK"), "{answer}");
        }
        thread::sleep(Duration::from_millis(10));
    }
    let outcome = running.wait();
    outcome
        .assert_code(0)
        .assert_stderr_contains(&format!("metrics: http://{address}/metrics"));
    assert!(has_been_ready && scrapes.len() > 10);
    let report = run.report();
    let number = |name: &str| report[name].as_f64().unwrap();
    // Nothing that is counted becomes less.
    for (before, after) in scrapes.iter().zip(&scrapes[1..]) {
        for (name, value) in before.iter().filter(|(name, _)| name.contains("_total")) {
            assert!(after[name] >= *value, "{name}");
        }
    }
    let last = scrapes.last().unwrap();
    let metric = |name: &str| last[&format!("events_backfill_{name}")];
    let observations = "{source=\"observations\"}";
    assert_eq!(
        metric(&format!("rows_processed_total{observations}")),
        number("observations_processed")
    );
    assert_eq!(
        metric(&format!("events_written_total{observations}")),
        number("events_inserted")
    );
    assert_eq!(
        metric(&format!("rows_without_trace_total{observations}")),
        number("observations_without_trace")
    );
    let at_work = scrapes
        .iter()
        .rfind(|scrape| scrape.contains_key("events_backfill_segments"));
    assert_eq!(
        at_work.unwrap()["events_backfill_segments"],
        number("segments_total")
    );
    assert!(metric("look_ups_total") > metric("look_ups_missed_total"));
    assert!(metric("look_ups_missed_total") > 0.0);
    assert!(metric("sent_bytes_total") > 1_000_000.0);
    let resident = metric("resident_bytes");
    assert!(
        resident > 1e6 && resident <= number("peak_rss_bytes"),
        "{resident}"
    );
    let load = metric("phase_seconds_total{phase=\"load\"}");
    let reported = report["seconds"]["load"].as_f64().unwrap();
    assert!((load - reported).abs() < 0.5, "{load} {reported}");
    let throttled = metric("throttled_seconds_total{reason=\"rows_per_second\"}");
    let reported = report["throttled_seconds"]["rows_per_second"]
        .as_f64()
        .unwrap();
    assert!(
        throttled > 0.5 && throttled <= reported + 0.1,
        "{throttled} {reported}"
    );
}

#[test]
fn lines_for_programs_are_json_with_a_level_each() {
    let database = Server::shared().sample_month("json_lines", 1_000);
    let run = Tool::new(&database).args(["--log-format", "json"]);
    let objects = |lines: &str| {
        let lines = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        lines.collect::<Vec<serde_json::Value>>()
    };
    let refused = run.run();
    refused.assert_code(2);
    let lines = objects(&refused.stderr);
    assert_eq!((lines.len(), &lines[0]["level"]), (1, &"error".into()));
    assert!(
        lines[0]["message"]
            .as_str()
            .unwrap()
            .contains("--partition")
    );
    let done = run.args(["--partition", SAMPLE_PARTITION]).run();
    done.assert_code(0);
    let lines = objects(&done.stderr);
    assert!(
        lines
            .iter()
            .all(|line| line["level"] == "info" && line["time"].is_string())
    );
    let last = lines
        .iter()
        .rfind(|line| line["phase"] == "observations processed");
    let last = last.unwrap();
    assert_eq!(last["rows"], last["rows_total"]);
}

#[test]
fn an_address_that_cannot_be_had_is_told_before_anything_is_done() {
    let database = Server::shared().sample_month("no_metrics", 100);
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for address in [taken.as_str(), "9464", "localhost"] {
        Tool::new(&database)
            .args(["--partition", SAMPLE_PARTITION, "--metrics-listen", address])
            .run()
            .assert_one_error(2, &["--metrics-listen", address]);
    }
}

#[test]
fn every_metric_that_the_dashboard_names_exists() {
    let database = Server::shared().sample_month("dashboard", 3_000);
    let address = free_address();
    let run = Tool::new(&database)
        .args([
            "--partition",
            SAMPLE_PARTITION,
            "--metrics-listen",
            &address,
        ])
        .args(["--max-rows-per-second", "500"]);
    let mut running = run.spawn();
    let mut described = String::new();
    while running.is_running() {
        let answer = get(&address, "/metrics").unwrap_or_default();
        if answer.contains("events_backfill_store_bytes") {
            described = answer;
        }
        thread::sleep(Duration::from_millis(50));
    }
    running.wait().assert_code(0);
    let dashboard =
        std::fs::read_to_string(repository_file("deploy/grafana-dashboard.json")).unwrap();
    let parsed: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    assert!(parsed["panels"].as_array().unwrap().len() > 5);
    let names =
        dashboard.split(|character: char| !(character.is_ascii_alphanumeric() || character == '_'));
    let mut checked = 0;
    for name in names.filter(|name| name.starts_with("events_backfill_")) {
        let base = name.strip_suffix("_total").unwrap_or(name);
        assert!(
            described.contains(&format!("# HELP {base} ")),
            "{name}\n{described}"
        );
        checked += 1;
    }
    assert!(checked > 8);
}
