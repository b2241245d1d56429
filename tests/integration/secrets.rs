//! Passwords come from the environment or from a file, and are never printed or stored. What is
//! stored, the traces of other people, is readable by its owner only.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::support::{Database, Outcome, Server, TESTER, Tool, small_month};

/// A password that is not the right one, and that no message may show either.
const WRONG: &str = "not-the-password-4711";

/// Ways to give a password.
#[derive(Clone, Copy, Debug)]
enum GivenIn {
    Environment,
    DotEnv,
    File,
    FileNamedInDotEnv,
}

const ALL_WAYS: [GivenIn; 4] = [
    GivenIn::Environment,
    GivenIn::DotEnv,
    GivenIn::File,
    GivenIn::FileNamedInDotEnv,
];

/// The program as the user with a password, given in that way, with every library asked to log all
/// it has.
fn with_password(database: &Database, password: &str, given_in: GivenIn) -> Tool {
    let tool = Tool::new(database)
        .args(["--partition", "202406"])
        .env("CLICKHOUSE_USER", TESTER.0)
        .env("RUST_LOG", "trace")
        .env("MAX_RETRIES", "1");
    // Beside the directory of the tool, so that looking for the password there does not find it.
    let file = tool.directory().join("password.txt");
    match given_in {
        GivenIn::Environment => tool.env("CLICKHOUSE_PASSWORD", password),
        GivenIn::DotEnv => {
            let line = format!("CLICKHOUSE_PASSWORD={password}\n");
            fs::write(tool.directory().join(".env"), line).unwrap();
            tool.without_env("CLICKHOUSE_PASSWORD")
        }
        GivenIn::File => {
            // As an editor leaves it: with the end of the line.
            fs::write(&file, format!("{password}\n")).unwrap();
            tool.without_env("CLICKHOUSE_PASSWORD")
                .env("CLICKHOUSE_PASSWORD_FILE", file)
        }
        GivenIn::FileNamedInDotEnv => {
            fs::write(&file, password).unwrap();
            let line = "CLICKHOUSE_PASSWORD_FILE=password.txt\n";
            fs::write(tool.directory().join(".env"), line).unwrap();
            tool.without_env("CLICKHOUSE_PASSWORD")
        }
    }
}

/// The password, as it is or as an HTTP header or a URL would have it, is in nothing that the
/// program printed and in no file but those in which it was given.
#[track_caller]
fn assert_nowhere(password: &str, tool: &Tool, outcome: &Outcome) {
    for (name, output) in [("stdout", &outcome.stdout), ("stderr", &outcome.stderr)] {
        assert!(!output.contains(password), "in {name}:\n{output}");
    }
    for file in files_below(tool.directory()) {
        let name = file.file_name().unwrap_or_default();
        if name == ".env" || name == "password.txt" {
            continue;
        }
        if fs::symlink_metadata(&file).unwrap().file_type().is_socket() {
            // It holds nothing.
            continue;
        }
        let content = fs::read(&file).unwrap();
        let found = content
            .windows(password.len())
            .any(|bytes| bytes == password.as_bytes());
        assert!(!found, "in {}", file.display());
    }
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(files_below(&path)),
            false => files.push(path),
        }
    }
    files
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn the_password_of_a_run_that_succeeds_is_nowhere() {
    for given_in in ALL_WAYS {
        let database = small_month("succeeds");
        let tool = with_password(&database, TESTER.1, given_in);
        let outcome = tool.run();
        outcome.assert_code(0);
        assert_nowhere(TESTER.1, &tool, &outcome);
        assert_eq!(
            database.query("SELECT count() FROM events_full"),
            Ok("6\n".to_owned()),
            "{given_in:?}"
        );
    }
}

#[test]
fn the_password_of_a_run_that_the_server_ends_is_nowhere() {
    let database = small_month("server_error");
    // Every insert breaks this rule.
    database
        .query("ALTER TABLE events_full ADD CONSTRAINT never CHECK span_id = ''")
        .unwrap();
    for given_in in ALL_WAYS {
        let tool = with_password(&database, TESTER.1, given_in);
        let outcome = tool.run();
        outcome.assert_code(1).assert_stderr_contains("never");
        assert_nowhere(TESTER.1, &tool, &outcome);
        // The trace store of a failed run stays for the next one: it must not know the password.
        assert!(tool.state_dir().is_dir());
    }
}

#[test]
fn a_wrong_password_is_nowhere_either() {
    // It is often the right one for something else.
    let database = small_month("wrong");
    for given_in in ALL_WAYS {
        let tool = with_password(&database, WRONG, given_in);
        let outcome = tool.run();
        outcome
            .assert_code(2)
            .assert_stderr_contains("CLICKHOUSE_PASSWORD");
        assert_nowhere(WRONG, &tool, &outcome);
    }
}

#[test]
fn the_password_for_a_server_that_is_not_there_is_nowhere() {
    let database = small_month("unreachable");
    for given_in in ALL_WAYS {
        let tool = with_password(&database, TESTER.1, given_in)
            .env("CLICKHOUSE_URL", "http://127.0.0.1:1");
        let outcome = tool.run();
        outcome.assert_code(2);
        assert_nowhere(TESTER.1, &tool, &outcome);
    }
}

#[test]
fn the_password_of_a_run_that_was_killed_is_nowhere() {
    let database = Server::shared().sample_month("killed", 4_000);
    let tool = with_password(&database, TESTER.1, GivenIn::Environment).args([
        "--batch-size",
        "1",
        "--concurrency",
        "1",
    ]);
    let mut running = tool.spawn();
    // One row per insert takes long enough to be caught in the middle of it.
    let written = || database.query("SELECT count() > 0 FROM events_full") == Ok("1\n".into());
    while running.is_running() && !written() {
        thread::sleep(Duration::from_millis(20));
    }
    // Nor can other users of the machine see it in the list of processes.
    let command_line = fs::read(format!("/proc/{}/cmdline", running.id())).unwrap_or_default();
    assert!(!String::from_utf8_lossy(&command_line).contains(TESTER.1));
    running.kill();
    let outcome = running.wait();
    assert_eq!(outcome.code, None, "it was to be killed at work");
    assert!(!files_below(&tool.state_dir()).is_empty());
    assert_nowhere(TESTER.1, &tool, &outcome);
}

#[test]
fn a_password_that_cannot_be_sent_is_told_and_not_shown() {
    // It travels in an HTTP header, which cannot hold everything.
    let database = small_month("odd_passwords");
    for password in [
        "two\nlines",
        "pässwört",
        "bell\u{7}",
        "with \"quotes\" and \\",
    ] {
        let tool = with_password(&database, password, GivenIn::Environment);
        let outcome = tool.run();
        outcome
            .assert_code(2)
            .assert_stderr_contains("CLICKHOUSE_PASSWORD");
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
        assert_nowhere(password, &tool, &outcome);
    }
}

#[test]
fn a_password_in_the_environment_counts_before_one_in_a_file() {
    let database = small_month("before");
    let tool = with_password(&database, WRONG, GivenIn::File)
        .arg("--dry-run")
        .env("CLICKHOUSE_PASSWORD", TESTER.1);
    tool.run().assert_code(0);
    // An empty variable is as if it were not there.
    let tool = with_password(&database, TESTER.1, GivenIn::File)
        .arg("--dry-run")
        .env("CLICKHOUSE_PASSWORD", "");
    tool.run().assert_code(0);
}

#[test]
fn there_is_no_flag_for_a_password() {
    // Command lines are seen by every user of the machine, and kept in the shell's history.
    for arguments in [
        &["--password", TESTER.1][..],
        &[&*format!("--password={}", TESTER.1)],
        &[&*format!("--clickhouse-password={}", TESTER.1)],
    ] {
        let outcome = Tool::unconfigured().args(arguments.iter().copied()).run();
        outcome
            .assert_code(2)
            .assert_stderr_contains("unexpected argument");
    }
    let help = Tool::unconfigured().arg("--help").run();
    assert!(!help.stdout.contains("--password"));
}

#[test]
fn only_the_owner_may_read_the_state() {
    // A run that fails leaves its state behind.
    let database = small_month("modes");
    database
        .query("ALTER TABLE events_full ADD CONSTRAINT never CHECK span_id = ''")
        .unwrap();

    // Made by the program, with a directory above it that is not there yet either.
    let tool = Tool::new(&database)
        .args(["--partition", "202406", "--state-dir", "new/state"])
        .env("MAX_RETRIES", "0");
    tool.run().assert_code(1);
    let state = tool.directory().join("new/state");
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join("202406")), 0o700);

    // There already, and open to all: it is the operator's, but what the program puts in is not.
    let tool = Tool::new(&database)
        .args(["--partition", "202406"])
        .env("MAX_RETRIES", "0");
    fs::create_dir(tool.state_dir()).unwrap();
    fs::set_permissions(tool.state_dir(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::create_dir(tool.state_dir().join("202406")).unwrap();
    let partition = tool.state_dir().join("202406");
    fs::set_permissions(&partition, fs::Permissions::from_mode(0o777)).unwrap();
    tool.run().assert_code(1);
    assert_eq!(mode(&partition), 0o700);
    assert!(!files_below(&partition).is_empty());
}
