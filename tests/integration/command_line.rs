//! What the operator types and sees: flags, environment and `.env`, help, progress, summary, report.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};

use crate::support::{
    Database, Outcome, SAMPLE_PARTITION, Server, Tool, repository_file, small_month, untouched,
};
use serde_json::Value;

/// The flags that every release has to keep.
const FLAGS: &[&str] = &[
    "--partition",
    "--all-partitions",
    "--keep-going",
    "--batch-size",
    "--dry-run",
    "--state-dir",
    "--resume",
    "--restart",
    "--resume-or-start",
    "--concurrency",
    "--memory-limit",
    "--target-table",
    "--exclude-dataset-items",
    "--no-trace-metadata",
    "--trace-margin-days",
    "--no-remote-lookup",
    "--root-spans",
    "--no-root-spans",
    "--experiments",
    "--no-experiments",
    "--report",
    "--quiet",
    "--compression",
    "--allow-duplicates",
    "--help",
    "--version",
];

fn count(database: &Database, sql: &str) -> u64 {
    let answer = database
        .query(sql)
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
    answer
        .trim()
        .parse()
        .unwrap_or_else(|_| panic!("{sql}: {answer}"))
}

// -------------------------------------------------------------------------------------------------
// Where a setting comes from
// -------------------------------------------------------------------------------------------------

#[test]
fn a_flag_counts_before_the_environment_and_the_environment_before_dot_env() {
    let report = |flag: Option<&str>, variable: Option<&str>, line: Option<&str>| {
        let mut tool = Tool::new(untouched()).arg("--dry-run");
        if let Some(partition) = flag {
            tool = tool.args(["--partition", partition]);
        }
        if let Some(partition) = variable {
            tool = tool.env("PARTITION", partition);
        }
        if let Some(partition) = line {
            let content = format!("PARTITION={partition}\n");
            fs::write(tool.directory().join(".env"), content).unwrap();
        }
        tool.run().assert_code(0);
        tool.report()
    };
    let (june, july) = ("202406", "202407");
    // No such partition: counting it would be an error.
    let never = "200001";
    for (flag, variable, line, expected) in [
        (Some(june), Some(never), Some(never), june),
        (Some(july), None, Some(never), july),
        (None, Some(july), Some(never), july),
        (None, Some(june), None, june),
        (None, None, Some(july), july),
    ] {
        let report = report(flag, variable, line);
        assert_eq!(report["partition"], expected);
    }
}

#[test]
fn the_same_holds_for_the_table_and_the_size_of_batches() {
    let database = small_month("precedence");
    // Every insert makes a part, and merges are stopped.
    let inserts = |table: &str| {
        let sql = format!(
            "SELECT count() FROM system.parts WHERE database = currentDatabase() \
             AND table = '{table}' AND active"
        );
        count(&database, &sql)
    };
    for table in ["by_flag", "by_variable", "by_dot_env"] {
        database
            .query(&format!("CREATE TABLE {table} AS events_full"))
            .unwrap();
        database
            .query(&format!("SYSTEM STOP MERGES {table}"))
            .unwrap();
    }
    let dot_env = "TARGET_TABLE=by_dot_env\nBATCH_SIZE=1\nCONCURRENCY=1\n";

    // One row per insert, as .env has it. An observation without a trace would wait, and be
    // inserted by itself.
    let tool = Tool::new(&database).args(["--partition", "202406", "--no-remote-lookup"]);
    fs::write(tool.directory().join(".env"), dot_env).unwrap();
    tool.run().assert_code(0);
    let target = format!("{}.by_dot_env", database.name);
    assert_eq!(tool.report()["target_table"], *target);

    // The environment has two and another table, the command line wins over both.
    let tool = tool
        .env("TARGET_TABLE", "by_variable")
        .env("BATCH_SIZE", "2")
        .arg("--restart");
    tool.run().assert_code(0);
    let tool = tool.args(["--target-table", "by_flag", "--batch-size=1000"]);
    tool.run().assert_code(0);

    for table in ["by_flag", "by_variable", "by_dot_env"] {
        let sql = format!("SELECT count() FROM {table} FINAL");
        assert_eq!(count(&database, &sql), 6, "{table}");
    }
    assert_eq!(inserts("by_flag"), 1);
    // A block may end, and with it a batch, before it is full.
    assert!((3..6).contains(&inserts("by_variable")));
    assert_eq!(inserts("by_dot_env"), 6);
    assert_eq!(count(&database, "SELECT count() FROM events_full"), 0);
}

#[test]
fn a_batch_never_has_more_rows_than_asked_for() {
    let database = small_month("batches");
    database.query("SYSTEM STOP MERGES events_full").unwrap();
    let tool = Tool::new(&database)
        .args(["--partition", "202406", "--batch-size", "2"])
        .env("STREAM_BLOCK_SIZE", "1000");
    tool.run().assert_code(0);
    let largest = "SELECT max(rows) FROM system.parts WHERE database = currentDatabase() \
                   AND table = 'events_full' AND active";
    assert!(
        count(&database, largest) <= 2,
        "{}",
        count(&database, largest)
    );
}

#[test]
fn a_dry_run_can_be_asked_for_in_every_place() {
    let database = small_month("dry_runs");
    for (in_environment, in_dot_env) in [
        (Some("true"), None),
        (None, Some("yes")),
        (Some("1"), Some("no")),
    ] {
        let mut tool = Tool::new(&database).args(["--partition", "202406"]);
        if let Some(value) = in_environment {
            tool = tool.env("DRY_RUN", value);
        }
        if let Some(value) = in_dot_env {
            fs::write(tool.directory().join(".env"), format!("DRY_RUN={value}\n")).unwrap();
        }
        tool.run().assert_code(0);
        assert_eq!(tool.report()["dry_run"], true);
    }
    let tool = Tool::new(&database).args(["--partition", "202406"]);
    fs::write(tool.directory().join(".env"), "DRY_RUN=true\n").unwrap();
    let tool = tool.env("DRY_RUN", "false");
    tool.run().assert_code(0);
    assert_eq!(tool.report()["dry_run"], false);
    assert_eq!(count(&database, "SELECT count() FROM events_full"), 6);
}

#[test]
fn a_dot_env_file_holds_what_people_write_in_it() {
    let database = small_month("dot_env");
    let tool = Tool::unconfigured();
    let content = format!(
        "# a comment, and an empty line\n\n\
         export CLICKHOUSE_URL=\"{}\"\n\
         CLICKHOUSE_DB='{}' # the database\n\
         PARTITION = 202406\r\n\
         UNKNOWN_VARIABLE=is somebody else's\n",
        database.server.url(),
        database.name
    )
    .replace("is somebody else's", "\"is somebody else's\"");
    fs::write(tool.directory().join(".env"), content).unwrap();
    tool.run().assert_code(0);
    assert_eq!(tool.report()["events_inserted"], 6);
}

#[test]
fn the_state_directory_is_where_it_is_said() {
    let database = small_month("state");
    // Every insert breaks this rule, so the state stays.
    database
        .query("ALTER TABLE events_full ADD CONSTRAINT never CHECK span_id = ''")
        .unwrap();
    let tool = Tool::new(&database)
        .args(["--partition", "202406"])
        .env("STATE_DIR", "from-the-environment");
    tool.run().assert_code(1);
    assert!(
        tool.directory()
            .join("from-the-environment/202406")
            .is_dir()
    );
    let tool = tool.args(["--state-dir", "from-the-flag"]);
    tool.run().assert_code(1);
    assert!(tool.directory().join("from-the-flag/202406").is_dir());
    assert!(!tool.directory().join("state").exists());
}

// -------------------------------------------------------------------------------------------------
// .env.example
// -------------------------------------------------------------------------------------------------

/// Variables that a text in the form of `.env` sets.
fn variables_set(content: &str) -> BTreeSet<String> {
    content
        .lines()
        // A variable may be there as a comment, to be uncommented.
        .map(|line| line.trim_start_matches(['#', ' ']))
        .filter_map(|line| Some(line.split_once('=')?.0.trim().to_owned()))
        .filter(|name| is_variable(name))
        .collect()
}

fn is_variable(word: &str) -> bool {
    word.len() > 3
        && word
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}

/// Variables that the help explains: `[env: NAME]`, which may be several names among words, and those of
/// the section on further settings.
fn variables_in_help(help: &str) -> BTreeSet<String> {
    let flat = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let of_flags = flat
        .split("[env: ")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once(']')?.0))
        .flat_map(|names| names.split([' ', ',']))
        .filter(|word| is_variable(word))
        .map(str::to_owned);
    let of_the_section = help
        .split_whitespace()
        .map(|word| word.trim_matches(|c: char| !c.is_ascii_alphanumeric()))
        .filter(|word| word.contains('_') && is_variable(word))
        .map(str::to_owned);
    of_flags.chain(of_the_section).collect()
}

#[test]
fn the_example_and_the_help_know_the_same_variables() {
    let example = fs::read_to_string(repository_file(".env.example")).unwrap();
    let help = Tool::unconfigured().arg("--help").run();
    help.assert_code(0);
    let in_example = variables_set(&example);
    assert!(in_example.contains("CLICKHOUSE_URL"));
    assert_eq!(in_example, variables_in_help(&help.stdout));
}

#[test]
fn the_example_works_once_the_address_is_filled_in() {
    let database = small_month("example");
    let example = fs::read_to_string(repository_file(".env.example")).unwrap();
    let filled: String = example
        .lines()
        .map(|line| match line.split_once('=').map(|(name, _)| name) {
            Some("CLICKHOUSE_URL") => format!("CLICKHOUSE_URL={}\n", database.server.url()),
            Some("CLICKHOUSE_DB") => format!("CLICKHOUSE_DB={}\n", database.name),
            Some("PARTITION") => "PARTITION=202406\n".to_owned(),
            _ => format!("{line}\n"),
        })
        .collect();
    assert!(filled.contains(&database.name), "it names the database");
    let tool = Tool::unconfigured().with_defaults();
    fs::write(tool.directory().join(".env"), filled).unwrap();
    tool.run().assert_code(0);
    let target = format!("{}.events_full", database.name);
    assert_eq!(tool.report()["target_table"], *target);
    assert_eq!(tool.report()["dry_run"], false);
    assert_eq!(tool.report()["events_inserted"], 6);
}

#[test]
fn the_example_says_what_the_defaults_are() {
    // A copied example must do what no file at all does.
    let example = fs::read_to_string(repository_file(".env.example")).unwrap();
    let help = Tool::unconfigured().arg("--help").run().stdout;
    let flat = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for (name, default) in [
        ("BATCH_SIZE", "1000000"),
        ("PART_BYTES", "512MiB"),
        ("STREAM_BLOCK_SIZE", "8192"),
        ("MAX_RETRIES", "8"),
        ("TRACE_MARGIN_DAYS", "1"),
        ("MEMORY_LIMIT", "512MiB"),
        ("STATE_DIR", "./state"),
        ("COMPRESSION", "auto"),
        ("CLICKHOUSE_URL", "http://localhost:8123"),
        ("CLICKHOUSE_USER", "default"),
        ("CLICKHOUSE_DB", "default"),
    ] {
        let line = format!("{name}={default}");
        assert!(example.lines().any(|other| other == line), "{line}");
        let after = flat.split(name).skip(1).any(|rest| {
            let default_comes = rest.find("[default: ").map(|at| &rest[at + 10..]);
            default_comes.is_some_and(|rest| rest.starts_with(&format!("{default}]")))
        });
        assert!(after, "the help has another default for {name}");
    }
    // It depends on the engine, so the example leaves it open.
    let of_segments = "250000, with ENGINE=clickhouse up to 500000.";
    assert!(example.contains(of_segments), "{of_segments}");
    assert!(example.lines().any(|line| line == "# SEGMENT_ROWS="));
    let of_segments = "[env: SEGMENT_ROWS] [default: 250000, with --engine clickhouse up to 500000, \
                       as --memory-limit allows]";
    assert!(flat.contains(of_segments), "{of_segments}");
}

// -------------------------------------------------------------------------------------------------
// Help and version
// -------------------------------------------------------------------------------------------------

#[test]
fn the_help_explains_every_flag_the_environment_and_the_exit_codes() {
    let help = Tool::unconfigured().arg("--help").run();
    help.assert_code(0);
    assert_eq!(help.stderr, "");
    for word in FLAGS {
        assert!(help.stdout.contains(word), "{word}\n{}", help.stdout);
    }
    for word in [
        "CLICKHOUSE_PASSWORD_FILE",
        ".env",
        "Examples:",
        "events-backfill --partition 202406",
        "Exit codes",
        "130",
        "[default: 250000, with --engine",
    ] {
        assert!(help.stdout.contains(word), "{word}\n{}", help.stdout);
    }
    assert!(!help.stdout.contains('\u{1b}'));
    let widest = help.stdout.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(100), "{widest:?}");
    // The short form is there, and is not longer.
    let short = Tool::unconfigured().arg("-h").run();
    short.assert_code(0);
    for word in FLAGS {
        assert!(short.stdout.contains(word), "{word}\n{}", short.stdout);
    }
}

// -------------------------------------------------------------------------------------------------
// Progress
// -------------------------------------------------------------------------------------------------

#[track_caller]
fn assert_plain(outcome: &Outcome) {
    for output in [&outcome.stdout, &outcome.stderr] {
        let control = output.chars().find(|&c| c.is_control() && c != '\n');
        assert_eq!(control, None, "{output:?}");
    }
}

#[test]
fn without_a_terminal_there_are_lines_and_no_escape_codes() {
    let database = small_month("lines");
    // Even where colours are asked for, in the ways in which they can be.
    let tool = Tool::new(&database)
        .args(["--partition", "202406"])
        .env("TERM", "xterm-256color")
        .env("CLICOLOR_FORCE", "1")
        .env("COLUMNS", "80");
    let outcome = tool.run();
    outcome.assert_code(0);
    assert_plain(&outcome);
    // Five live rows and versions, of which the parts may have merged some.
    for phase in ["traces loaded: ", "observations processed: "] {
        let line = outcome
            .stderr
            .lines()
            .rfind(|line| line.starts_with(phase))
            .unwrap_or_else(|| panic!("{phase}\n{}", outcome.stderr));
        assert!(line.contains("(100 %)"), "{line}");
        assert!(line.contains(" of "), "{line}");
        assert!(line.contains("/s"), "{line}");
    }
    // What differs from the summary's number of observations has another name.
    outcome.assert_stderr_contains(" table rows (100 %)");
    // Of several partitions too.
    let several = tool.args(["--partition", "202407", "--restart"]).run();
    several.assert_code(0);
    assert_plain(&several);
    // The summary is what a script reads: by itself on standard output.
    assert!(outcome.stdout.trim_start().starts_with("Partition"));
    assert!(!outcome.stderr.contains("Throughput"));
}

#[test]
fn without_a_terminal_errors_have_no_escape_codes_either() {
    for arguments in [&["--no-such-flag"][..], &["--partition", "202405"]] {
        let outcome = Tool::new(untouched())
            .args(arguments.iter().copied())
            .env("TERM", "xterm-256color")
            .run();
        outcome.assert_code(2);
        assert_plain(&outcome);
    }
}

/// What appears on a terminal of 100 columns when the program runs on it.
fn on_a_terminal(database: &Database, arguments: &str) -> String {
    on_a_terminal_of(100, database, arguments)
}

fn on_a_terminal_of(columns: u32, database: &Database, arguments: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_events-backfill");
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command"])
        .arg(format!(
            "stty cols {columns} rows 24; {program} --partition 202406 --no-root-spans --no-experiments {arguments}"
        ))
        .arg("/dev/null")
        .current_dir(directory.path())
        .env("CLICKHOUSE_URL", database.server.url())
        .env("CLICKHOUSE_DB", &database.name)
        .env("TERM", "xterm")
        .env("SHELL", "/bin/sh")
        .env_remove("NO_COLOR")
        .stdin(Stdio::null())
        .output()
        .expect("`script`, of util-linux, is there");
    let screen = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{screen}");
    screen
}

#[test]
fn on_a_terminal_there_are_bars_with_a_percentage() {
    let database = small_month("terminal");
    let screen = on_a_terminal(&database, "");
    assert!(screen.contains('\u{1b}'), "{screen:?}");
    for phase in ["traces loaded", "observations processed"] {
        let bar = screen
            .split(['\r', '\n'])
            .rfind(|line| line.contains(phase) && line.contains('['))
            .unwrap_or_else(|| panic!("{phase}: {screen:?}"));
        assert!(bar.contains("100 %"), "{bar:?}");
        assert!(bar.contains("/s"), "{bar:?}");
        assert!(bar.contains("left"), "{bar:?}");
    }
    assert!(screen.contains(" table rows "), "{screen:?}");
    assert!(screen.contains("Events inserted"));
}

/// A line without what makes it coloured, or clears it.
fn visible(line: &str) -> String {
    let mut shown = String::new();
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => {
                while characters
                    .next()
                    .is_some_and(|next| !next.is_ascii_alphabetic())
                {}
            }
            character => shown.push(character),
        }
    }
    shown
}

#[test]
fn in_60_columns_a_bar_is_still_one_and_does_not_wrap() {
    let database = small_month("narrow_terminal");
    let screen = on_a_terminal_of(60, &database, "--partition 202407");
    let lines = screen.split(['\r', '\n']).map(visible);
    let bars: Vec<String> = lines.filter(|line| line.contains(" [")).collect();
    for name in ["partition 1 of 2", "observations processed"] {
        assert!(bars.iter().any(|bar| bar.contains(name)), "{screen:?}");
    }
    for line in bars {
        // Each bar is as wide as the terminal, and they follow each other without another sign.
        let shown: Vec<char> = line.chars().collect();
        for bar in shown.chunks(60) {
            let bar = String::from_iter(bar);
            let inside = bar.split_once('[').unwrap_or_else(|| panic!("{line:?}")).1;
            let inside = inside
                .split_once(']')
                .unwrap_or_else(|| panic!("{line:?}"))
                .0;
            assert!(inside.chars().count() >= 5, "{bar:?}");
            assert!(bar.contains(" %"), "{bar:?}");
        }
    }
}

#[test]
fn on_a_terminal_a_bar_shows_how_far_several_partitions_are_together() {
    let database = small_month("terminals");
    let screen = on_a_terminal(&database, "--partition 202407");
    for (title, events) in [
        ("partition 1 of 2 (202407)", 1),
        ("partition 2 of 2 (202406)", 6),
    ] {
        let bars: Vec<&str> = screen
            .split(['\r', '\n'])
            .filter(|line| line.contains(title) && line.contains('['))
            .collect();
        assert!(!bars.is_empty(), "{title}: {screen:?}");
        let done = format!("is done: {events} events");
        assert!(screen.contains(&done), "{done}: {screen:?}");
        if events == 6 {
            let last = bars[bars.len() - 1];
            assert!(last.contains("100 %"), "{last:?}");
        }
    }
    // Above the bars of the phases.
    let first = |text| screen.find(text).unwrap_or_else(|| panic!("{screen:?}"));
    assert!(first("partition 1 of 2") < first("observations processed"));
    assert!(screen.contains("2: 2 done"), "{screen:?}");
    assert_eq!(
        on_a_terminal(&database, "--partition 202407 --quiet --restart"),
        ""
    );
}

#[test]
fn quiet_means_quiet_on_a_terminal_and_off_it() {
    let database = small_month("quiet");
    assert_eq!(on_a_terminal(&database, "--quiet"), "");
    let tool = Tool::new(&database).args(["--partition", "202406", "--quiet"]);
    let outcome = tool.run();
    outcome.assert_code(0);
    assert_eq!((&*outcome.stdout, &*outcome.stderr), ("", ""));
    // The first run has done the work; the report of the second, from another state directory, says so.
    assert_eq!(tool.report()["already_there"], 6);

    // Errors are not progress.
    let outcome = Tool::new(&database)
        .args(["--partition", "202405", "--quiet"])
        .run();
    outcome.assert_code(2);
    assert_eq!(outcome.stdout, "");
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
}

// -------------------------------------------------------------------------------------------------
// Report and summary
// -------------------------------------------------------------------------------------------------

fn sample_month() -> Database<'static> {
    Server::shared().sample_month("sample", 20_000)
}

#[track_caller]
fn number(report: &Value, field: &str) -> u64 {
    report[field]
        .as_u64()
        .unwrap_or_else(|| panic!("{field} is {}", report[field]))
}

#[track_caller]
fn assert_fields(object: &Value, expected: &[&str]) {
    let fields: BTreeSet<&str> = object
        .as_object()
        .expect("it is an object")
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(fields, expected.iter().copied().collect());
}

#[test]
fn the_report_agrees_with_the_tables() {
    let database = sample_month();
    // FINAL keeps both versions of a trace that moved to another day: the latest one counts.
    let live_traces = count(
        &database,
        "SELECT countIf(deleted = 0) FROM (SELECT argMax(is_deleted, event_ts) AS deleted \
         FROM traces WHERE _partition_id = '202406' GROUP BY project_id, id)",
    );
    let observations = count(
        &database,
        "SELECT count() FROM observations FINAL WHERE _partition_id = '202406'",
    );
    let without_trace = count(
        &database,
        "SELECT count() FROM observations FINAL WHERE _partition_id = '202406' \
         AND (project_id, trace_id) NOT IN (SELECT project_id, id FROM traces \
         GROUP BY project_id, id HAVING argMax(is_deleted, event_ts) = 0)",
    );
    assert!(without_trace > 0 && without_trace < observations);

    let tool = Tool::new(&database).args(["--partition", SAMPLE_PARTITION]);
    let outcome = tool.run();
    outcome.assert_code(0);
    let report = tool.report();
    assert_fields(
        &report,
        &[
            "partition",
            "target_table",
            "dry_run",
            "resumed",
            "traces_loaded",
            "observations_processed",
            "events_inserted",
            "observations_without_trace",
            "root_spans_inserted",
            "root_spans_per_second",
            "traces_superseded",
            "spans_in_experiments",
            "observations_superseded",
            "written_by_earlier_attempts",
            "left_to_live_rows",
            "root_spans_left_to_live_roots",
            "root_spans_left_to_observations",
            "items_left_to_live_spans",
            "already_there",
            "shard",
            "left_to_live_path",
            "until",
            "traces_reloaded",
            "traces_changed_after_writing",
            "rows_to_merge",
            "throttled_seconds",
            "ended_with",
            "traces_remote",
            "traces_not_found",
            "traces_not_found_listed",
            "errors",
            "retries",
            "segments_total",
            "segments_done",
            "peak_rss_bytes",
            "store_bytes",
            "seconds",
            "observations_per_second",
        ],
    );
    assert_fields(
        &report["seconds"],
        &["load", "stream", "root_spans", "insert", "total"],
    );

    assert_eq!(report["partition"], SAMPLE_PARTITION);
    let target = format!("{}.events_full", database.name);
    assert_eq!(report["target_table"], *target);
    assert_eq!(report["dry_run"], false);
    assert_eq!(report["resumed"], false);
    assert_eq!(number(&report, "observations_processed"), observations);
    assert_eq!(number(&report, "events_inserted"), observations);
    assert_eq!(number(&report, "observations_without_trace"), without_trace);
    assert_eq!(number(&report, "errors"), 0);
    assert_eq!(number(&report, "retries"), 0);
    assert!(number(&report, "segments_total") >= 1);
    assert_eq!(report["segments_done"], report["segments_total"]);
    assert_eq!(
        count(&database, "SELECT count() FROM events_full FINAL"),
        observations
    );

    let megabyte = 1 << 20;
    let peak = number(&report, "peak_rss_bytes");
    assert!(peak > 5 * megabyte && peak < 512 * megabyte, "{peak}");
    let store = number(&report, "store_bytes");
    assert!(store > 100_000 && store < 100 * megabyte, "{store}");

    let seconds = |field: &str| report["seconds"][field].as_f64().expect("it is a number");
    for field in ["load", "stream", "insert", "total"] {
        assert!(seconds(field) > 0.0, "{field}");
    }
    assert!(seconds("load") + seconds("stream") <= seconds("total"));
    assert!(seconds("total") <= outcome.duration.as_secs_f64());
    let rate = report["observations_per_second"].as_f64().unwrap();
    let expected = observations as f64 / seconds("stream");
    assert!((rate / expected - 1.0).abs() < 0.01, "{rate} {expected}");

    assert_summary(&outcome, &report);

    // Last, since it is the one that is easily counted in another way.
    assert_eq!(number(&report, "traces_loaded"), live_traces);
}

/// The summary has the fields that the Python script printed and more, and says the same as the
/// report.
#[track_caller]
fn assert_summary(outcome: &Outcome, report: &Value) {
    let line = |name: &str| {
        outcome
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_else(|| panic!("{name}\n{}", outcome.stdout))
            .trim()
            .to_owned()
    };
    let plain = |name: &str| line(name).replace(',', "");
    assert_eq!(plain("Partition"), report["partition"]);
    assert_eq!(plain("Target table"), report["target_table"]);
    for (name, field) in [
        ("Traces loaded", "traces_loaded"),
        ("Observations processed", "observations_processed"),
        ("Events inserted", "events_inserted"),
        ("Observations without trace", "observations_without_trace"),
        ("Errors", "errors"),
    ] {
        assert_eq!(plain(name), report[field].to_string());
    }
    let dry_run = line("Dry run");
    assert!(dry_run.starts_with(if report["dry_run"] == true {
        "yes"
    } else {
        "no"
    }));
    for name in [
        "Time loading",
        "Time streaming",
        "Time inserting",
        "Time in total",
        "Throughput",
        "Peak memory",
        "Trace store",
    ] {
        let value = line(name);
        assert!(
            value.contains(|c: char| c.is_ascii_digit()),
            "{name} {value}"
        );
    }
}

#[test]
fn a_dry_run_does_everything_but_insert_and_says_so() {
    let database = small_month("dry_run");
    let tool = Tool::new(&database).args(["--partition", "202406", "--dry-run"]);
    let outcome = tool.run();
    outcome.assert_code(0);
    assert!(outcome.stdout.contains("nothing was inserted"));
    outcome.assert_stderr_contains("would go into");
    let report = tool.report();
    assert_eq!(report["dry_run"], true);
    assert_eq!(number(&report, "traces_loaded"), 3);
    assert_eq!(number(&report, "observations_processed"), 6);
    assert_eq!(number(&report, "observations_without_trace"), 2);
    assert_eq!(number(&report, "events_inserted"), 0);
    assert_eq!(number(&report, "errors"), 0);
    assert_eq!(report["segments_done"], report["segments_total"]);
    assert_eq!(report["seconds"]["insert"].as_f64(), Some(0.0));
    assert_summary(&outcome, &report);
    assert_eq!(count(&database, "SELECT count() FROM events_full"), 0);

    // It did not even ask the server for an insert.
    database.query("SYSTEM FLUSH LOGS query_log").unwrap();
    let inserts = format!(
        "SELECT count() FROM system.query_log WHERE query_kind = 'Insert' \
         AND has(databases, '{0}') AND has(tables, '{0}.events_full')",
        database.name
    );
    assert_eq!(count(&database, &inserts), 0);

    // The run that follows it is not disturbed by what it left.
    let tool = Tool::new(&database).args(["--partition", "202406"]);
    tool.run().assert_code(0);
    assert_eq!(count(&database, "SELECT count() FROM events_full"), 6);
}

#[test]
fn a_report_replaces_the_one_before_and_is_whole() {
    let database = small_month("replaced");
    let tool = Tool::new(&database).args(["--partition", "202406", "--report", "summary.json"]);
    let file = tool.directory().join("summary.json");
    fs::write(&file, "something old, longer than nothing".repeat(1_000)).unwrap();
    tool.run().assert_code(0);
    let report = fs::read(&file).unwrap();
    let report: Value = serde_json::from_slice(&report).expect("it is JSON and nothing else");
    assert_eq!(report["events_inserted"], 6);
}

#[test]
fn what_a_month_without_traces_came_to_is_told() {
    let database = small_month("no_traces");
    let tool = Tool::new(&database).args(["--partition", "202407"]);
    tool.run().assert_code(0);
    let report = tool.report();
    assert_eq!(number(&report, "traces_loaded"), 0);
    assert_eq!(number(&report, "observations_processed"), 1);
    assert_eq!(number(&report, "events_inserted"), 1);
}

// -------------------------------------------------------------------------------------------------
// Commands
// -------------------------------------------------------------------------------------------------

#[test]
fn every_command_has_its_help() {
    let general = Tool::unconfigured().arg("--help").run();
    for (command, flags) in [
        ("verify", &["--partition", "--target-table", "--report"][..]),
        (
            "plan",
            &[
                "--partition",
                "--target-table",
                "--exclude-dataset-items",
                "--no-trace-metadata",
                "--state-dir",
                "--memory-limit",
                "--concurrency",
                "--batch-size",
                "--segment-rows",
                "--allow-duplicates",
                "--compression",
                "--report",
                "--quiet",
            ],
        ),
        ("status", &["--state-dir", "--json"]),
    ] {
        assert!(general.stdout.contains(command), "{command}");
        let help = Tool::unconfigured().args([command, "--help"]).run();
        help.assert_code(0);
        assert_eq!(help.stderr, "");
        for flag in flags.iter().chain(&["--help"]) {
            assert!(help.stdout.contains(flag), "{flag}\n{}", help.stdout);
        }
        let widest = help.stdout.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(100), "{widest:?}\n{}", help.stdout);
    }
}

#[test]
fn a_command_comes_before_its_flags() {
    let tool = Tool::unconfigured().args(["--partition", SAMPLE_PARTITION, "plan"]);
    let outcome = tool.run();
    outcome.assert_code(2);
    outcome.assert_stderr_contains("put it first, `events-backfill plan ");
    assert_eq!(outcome.stdout, "");
}

#[test]
fn a_plan_has_nothing_that_tells_of_a_run() {
    let help = Tool::unconfigured().args(["plan", "--help"]).run();
    let of_run = Tool::unconfigured().arg("--help").run();
    for (flag, value) in [("--html", "page.html"), ("--metrics-listen", "127.0.0.1:0")] {
        assert!(of_run.stdout.contains(flag));
        assert!(!help.stdout.contains(flag));
        let plan =
            Tool::unconfigured().args(["plan", "--partition", SAMPLE_PARTITION, flag, value]);
        let outcome = plan.run();
        outcome.assert_code(2);
        outcome.assert_stderr_contains(&format!("unexpected argument '{flag}'"));
    }
}

#[test]
fn two_outputs_do_not_go_into_one_file() {
    let files = [("both", "both"), ("both", "./both"), ("-", "/dev/stdout")];
    for (report, html) in files {
        let run = Tool::new(untouched())
            .args(["--partition", SAMPLE_PARTITION, "--dry-run"])
            .args(["--report", report, "--html", html]);
        run.run()
            .assert_one_error(2, &["--report and --html both name", "choose another file"]);
        assert!(!run.directory().join("both").exists());
    }
}
