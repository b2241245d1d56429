//! What documents take from the code: docs/reference.md is made from it, and docs/troubleshooting.md quotes it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use serde_json::Value;

use crate::support::differential::execute;
use crate::support::{SAMPLE_PARTITION, Server, Tool, free_address, repository_file, small_month};

fn document(name: &str) -> String {
    fs::read_to_string(repository_file(name)).unwrap()
}

// -------------------------------------------------------------------------------------------------
// docs/reference.md
// -------------------------------------------------------------------------------------------------

/// `target/<profile>/examples/reference`, seen from `target/<profile>/deps/<this test>`.
fn maker() -> PathBuf {
    let this_test = std::env::current_exe().unwrap();
    let profile = this_test.parent().and_then(Path::parent).unwrap();
    profile.join("examples").join("reference")
}

#[test]
fn the_reference_is_what_the_code_says() {
    let made = Command::new(maker()).output();
    let made = made.expect("cargo builds the examples with the tests: run `make test`");
    assert!(made.status.success(), "{made:?}");
    let made = String::from_utf8(made.stdout).unwrap();
    let there = document("docs/reference.md");
    let differs = made
        .lines()
        .zip(there.lines())
        .find(|(made, there)| made != there);
    if made != there {
        panic!(
            "docs/reference.md is not up to date: run `make reference`; first difference: {differs:?}"
        );
    }
}

/// The part of the reference below a heading, down to the next one of the same rank.
fn section(heading: &str) -> String {
    let reference = document("docs/reference.md");
    let start = format!("\n{heading}\n");
    let rank = heading.split(' ').next().unwrap();
    let (_, rest) = reference
        .split_once(&start)
        .unwrap_or_else(|| panic!("no {heading}"));
    let end = format!("\n{rank} ");
    rest.split(&end).next().unwrap().to_owned()
}

/// Fields by their paths, `seconds.load` and `tables[].bytes`; those of a list only where it has something.
fn paths(value: &Value, prefix: &str, found: &mut BTreeSet<String>) {
    match value {
        // Reasons, not fields.
        Value::Object(_) if prefix == "throttled_seconds." => {}
        Value::Object(fields) => {
            for (name, inner) in fields {
                found.insert(format!("{prefix}{name}"));
                paths(inner, &format!("{prefix}{name}."), found);
            }
        }
        Value::Array(items) => {
            let prefix = format!("{}[].", prefix.trim_end_matches('.'));
            items.iter().for_each(|item| paths(item, &prefix, found));
        }
        _ => {}
    }
}

#[track_caller]
fn assert_explained(report: &Value, heading: &str, is_explained_elsewhere: impl Fn(&str) -> bool) {
    let section = section(heading);
    let mut found = BTreeSet::new();
    paths(report, "", &mut found);
    assert!(!found.is_empty());
    for path in found.iter().filter(|path| !is_explained_elsewhere(path)) {
        let row = format!("\n| `{path}` |");
        assert!(section.contains(&row), "{heading}: {path}");
    }
}

#[test]
fn the_reference_has_every_field_of_every_report() {
    let database = small_month("reference");
    let here = |_: &str| false;

    let plan = Tool::new(&database)
        .arg("plan")
        .args(["--partition", "202406"]);
    plan.run().assert_code(0);
    assert_explained(&plan.report(), "### A plan", here);

    let run = Tool::new(&database).args(["--partition", "202406"]);
    run.run().assert_code(0);
    assert_explained(&run.report(), "### A run of one month", here);

    let status = Tool::unconfigured()
        // It has no such flag, and this keeps `Tool` from giving it.
        .env("REPORT", "none")
        .args(["status", "--json", "--state-dir"])
        .arg(run.state_dir())
        .run();
    status.assert_code(0);
    let status: Value = serde_json::from_str(&status.stdout).unwrap();
    // The report of the run is in it as it is.
    let of_run = |path: &str| path.contains(".last_report.");
    assert_explained(&status, "### The status", of_run);

    let several = Tool::new(&database).arg("--all-partitions");
    several.run().assert_code(0);
    let one_month = section("### A run of one month");
    let of_one = |path: &str| {
        let field = path.strip_prefix("partitions[].");
        field.is_some_and(|field| one_month.contains(&format!("\n| `{field}` |")))
    };
    assert_explained(&several.report(), "### A run of several months", of_one);

    execute(
        &database,
        "DELETE FROM events_full WHERE span_id != '' SETTINGS lightweight_deletes_sync = 2",
    );
    let verify = Tool::new(&database)
        .arg("verify")
        .args(["--partition", "202406"]);
    verify.run().assert_code(1);
    assert!(!verify.report()["examples"].as_array().unwrap().is_empty());
    assert_explained(&verify.report(), "### The report of verify", here);

    let repair = Tool::new(&database).arg("repair").arg("--optimize");
    let repair = repair.args(["--partition", "202406"]);
    repair.run();
    assert_explained(&repair.report(), "### The report of repair", here);
}

#[test]
fn the_reference_has_every_metric() {
    let database = Server::shared().sample_month("reference_metrics", 5_000);
    let address = free_address();
    let run = Tool::new(&database)
        .args([
            "--partition",
            SAMPLE_PARTITION,
            "--metrics-listen",
            &address,
        ])
        .args(["--max-rows-per-second", "1000"]);
    let mut running = run.spawn();
    let started = Instant::now();
    let mut scraped = BTreeSet::new();
    while running.is_running() && started.elapsed() < Duration::from_secs(60) {
        if let Ok(mut answer) = ureq::get(format!("http://{address}/metrics")).call() {
            let body = answer.body_mut().read_to_string().unwrap();
            let lines = body.lines().filter(|line| !line.starts_with('#'));
            scraped.extend(lines.map(|line| line.split(['{', ' ']).next().unwrap().to_owned()));
        }
        if scraped.contains("events_backfill_store_bytes") {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    running.interrupt();
    running.wait();
    let metrics = section("## Metrics");
    assert!(scraped.len() > 10, "{scraped:?}");
    for name in scraped {
        assert!(metrics.contains(&format!("\n| `{name}` |")), "{name}");
    }
}

// -------------------------------------------------------------------------------------------------
// docs/troubleshooting.md
// -------------------------------------------------------------------------------------------------

/// Where the program's messages are: the literals of its sources, without comments and tests.
#[derive(Default)]
struct Messages {
    /// All literals, with `…` for what is filled in.
    all: BTreeSet<String>,
    /// Those that an error of the configuration begins with.
    of_configuration: BTreeSet<String>,
}

/// A literal as a person reads it: `{name}` is `…`.
fn readable(literal: &str) -> String {
    let mut text = String::new();
    let mut rest = literal;
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        text.push('…');
        rest = after.split_once('}').map_or("", |(_, after)| after);
    }
    text + rest
}

impl Messages {
    fn of(files: &[PathBuf]) -> Messages {
        let mut messages = Messages::default();
        for file in files {
            let tokens: TokenStream = fs::read_to_string(file).unwrap().parse().unwrap();
            messages.add(tokens);
        }
        messages
    }

    fn add(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        for (at, token) in tokens.iter().enumerate() {
            let before: Vec<String> = tokens[at.saturating_sub(4)..at]
                .iter()
                .map(ToString::to_string)
                .collect();
            match token {
                TokenTree::Literal(literal) => {
                    if let Ok(text) = syn::parse_str::<syn::LitStr>(&literal.to_string()) {
                        self.all.insert(readable(&text.value()));
                    }
                }
                TokenTree::Group(group) => {
                    let first = group.stream().into_iter().next();
                    let is_doc = group.delimiter() == Delimiter::Bracket
                        && first.is_some_and(|token| token.to_string() == "doc");
                    let is_test = before.ends_with(&["mod".to_owned(), "tests".to_owned()]);
                    if is_doc || is_test {
                        continue;
                    }
                    if before.concat() == "Error::configuration" {
                        self.of_configuration
                            .extend(first_literal(group.stream()).map(|it| readable(&it)));
                    }
                    self.add(group.stream());
                }
                _ => {}
            }
        }
    }
}

fn first_literal(tokens: TokenStream) -> Option<String> {
    tokens.into_iter().find_map(|token| match token {
        TokenTree::Literal(literal) => {
            let text = syn::parse_str::<syn::LitStr>(&literal.to_string());
            text.ok().map(|text| text.value())
        }
        TokenTree::Group(group) => first_literal(group.stream()),
        _ => None,
    })
}

fn sources(directory: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![repository_file(directory)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => directories.push(path),
                false if path.extension().is_some_and(|it| it == "rs") => found.push(path),
                false => {}
            }
        }
    }
    found
}

/// The messages that docs/troubleshooting.md quotes: the first column of its tables.
fn quoted() -> BTreeSet<String> {
    let text = document("docs/troubleshooting.md");
    let cells = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let message = |cell: &str| match cell.strip_prefix('`') {
        // What has backticks itself stands between two of them.
        Some(cell) => cell.split_once("``").unwrap().0.to_owned(),
        None => cell.split_once('`').unwrap().0.to_owned(),
    };
    cells.map(message).collect()
}

/// ClickHouse's error codes that docs/troubleshooting.md explains.
fn codes_quoted() -> BTreeSet<String> {
    let text = document("docs/troubleshooting.md");
    let (_, table) = text.split_once("| code |").unwrap();
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let cells = rows.map(|row| row.split('|').nth(1).unwrap().to_owned());
    cells
        .flat_map(|cell| {
            cell.split(',')
                .map(|code| code.trim().to_owned())
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn messages_that_troubleshooting_explains_are_the_programs() {
    let messages = Messages::of(&sources("src"));
    let quoted = quoted();
    assert!(quoted.len() > 50, "{}", quoted.len());
    let is_there = |message: &String| messages.all.iter().any(|literal| literal.contains(message));
    let strangers: Vec<String> = quoted
        .into_iter()
        .filter(|message| !is_there(message))
        .collect();
    assert!(
        strangers.is_empty(),
        "no message of the program has these: {strangers:#?}"
    );
}

#[test]
fn troubleshooting_explains_what_operators_meet() {
    // Whoever mistypes an option is told what it must be: src/cli has those messages.
    let mut expected = BTreeSet::new();
    for directory in [
        "src/commands",
        "src/inspect",
        "src/state",
        "src/repair",
        "src/verify",
    ] {
        expected.extend(Messages::of(&sources(directory)).of_configuration);
    }
    expected.extend(Messages::of(&[repository_file("src/session.rs")]).of_configuration);
    let advice = fs::read_to_string(repository_file("src/error.rs")).unwrap();
    let (_, advice) = advice.split_once("impl fmt::Display for Advice").unwrap();
    let advice = advice.split("#[cfg(test)]").next().unwrap();
    let mut messages = Messages::default();
    messages.add(
        format!("impl fmt::Display for Advice{advice}")
            .parse()
            .unwrap(),
    );
    expected.extend(messages.all);

    // Some messages are put together of words that stand elsewhere.
    expected.retain(|literal| literal.chars().filter(char::is_ascii_alphabetic).count() > 8);

    let quoted = quoted();
    let is_explained = |literal: &String| quoted.iter().any(|message| literal.contains(message));
    let missing: Vec<_> = expected
        .iter()
        .filter(|literal| !is_explained(literal))
        .collect();
    assert!(expected.len() > 40, "{}", expected.len());
    assert!(
        missing.is_empty(),
        "docs/troubleshooting.md does not explain {missing:#?}"
    );
}

#[test]
fn troubleshooting_explains_the_codes_that_are_tried_again_or_end_a_run() {
    let source = fs::read_to_string(repository_file("src/clickhouse/error.rs")).unwrap();
    let lists = [
        "const PASSING: &[u32] = &[",
        "const LIMITS: &[(u32, &str)] = &[",
    ];
    let mut codes = BTreeSet::new();
    for list in lists {
        let (_, rest) = source.split_once(list).unwrap();
        let list = rest.split_once("];").unwrap().0;
        // The first number of a line, or of the line below a bracket.
        let numbers = list.lines().filter_map(|line| {
            let line = line.trim().trim_start_matches('(');
            line.split(',')
                .next()
                .filter(|number| number.parse::<u32>().is_ok())
        });
        codes.extend(numbers.map(str::to_owned));
    }
    let quoted = codes_quoted();
    let missing: Vec<_> = codes.difference(&quoted).collect();
    assert!(codes.len() > 35, "{codes:?}");
    assert!(missing.is_empty(), "{missing:?}");
}
