//! Files that the user names: whatever a file is, it stays that, and says what it must.

use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use crate::support::{SAMPLE_PARTITION, Tool, small_month, untouched};
use nix::sys::stat::Mode;
use serde_json::Value;

/// What is reported on, with what the report says of itself.
const COMMANDS: [(&[&str], &str); 4] = [
    (&["--dry-run"], "dry_run"),
    (&["plan"], "partition"),
    (&["verify"], "complete"),
    (&["repair", "--dry-run"], "found"),
];

fn tool(command: &[&str], report: &Path) -> Tool {
    Tool::new(untouched())
        .args(command.iter().copied())
        .args(["--partition", SAMPLE_PARTITION, "--report"])
        .arg(report)
        .env("STATE_DIR", "state")
}

#[track_caller]
fn assert_is_report(path: &Path, field: &str) {
    let report = fs::read(path).unwrap();
    assert_report(&report, field);
}

#[track_caller]
fn assert_report(report: &[u8], field: &str) {
    let text = String::from_utf8_lossy(report);
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    assert!(!report[field].is_null(), "{report:#}");
}

#[test]
fn a_link_is_followed_and_a_file_keeps_its_mode() {
    for (command, field) in COMMANDS {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        symlink("file", &link).unwrap();
        for mode in [None, Some(0o640)] {
            if let Some(mode) = mode {
                fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            }
            tool(command, &link).run();
            assert_is_report(&file, field);
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        }
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o640);
    }
}

#[test]
fn a_new_file_heeds_the_umask() {
    let directory = tempfile::tempdir().unwrap();
    for (umask, mode) in [
        ("umask 027; exec \"$0\" \"$@\"", 0o640),
        ("umask 0; exec \"$0\" \"$@\"", 0o666),
    ] {
        let file = directory.path().join(mode.to_string());
        tool(&["plan"], &file).started_by(["sh", "-c", umask]).run();
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, mode);
    }
}

#[test]
fn a_device_and_a_pipe_stay_what_they_are() {
    for (command, field) in COMMANDS {
        let before = fs::metadata("/dev/null").unwrap();
        tool(command, Path::new("/dev/null")).run();
        let after = fs::metadata("/dev/null").unwrap();
        assert!(after.file_type().is_char_device());
        assert_eq!((before.ino(), before.mode()), (after.ino(), after.mode()));

        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, Mode::from_bits_truncate(0o600)).unwrap();
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || {
                let mut report = Vec::new();
                File::open(pipe).unwrap().read_to_end(&mut report).unwrap();
                report
            }
        });
        tool(command, &pipe).run();
        assert_report(&reader.join().unwrap(), field);
        assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    }
}

#[test]
fn standard_output_takes_the_report_after_all_else() {
    for (command, field) in COMMANDS {
        for stdout in ["/dev/stdout", "-"] {
            let outcome = tool(command, Path::new(stdout)).arg("--quiet").run();
            assert_report(outcome.stdout.as_bytes(), field);
        }
    }
    let with_summary = tool(&["--dry-run"], Path::new("/dev/stdout")).started_by([
        "sh",
        "-c",
        "exec \"$0\" \"$@\" >output",
    ]);
    with_summary.run().assert_code(0);
    let output = fs::read_to_string(with_summary.directory().join("output")).unwrap();
    let (summary, report) = output.split_once("\n{").unwrap();
    assert!(summary.contains("Observations processed"), "{output}");
    assert_report(format!("{{{report}").as_bytes(), "dry_run");
}

#[test]
fn a_report_does_not_take_the_place_of_a_state() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    for path in [state.clone(), state.join("202406/checkpoint")] {
        for (command, _) in COMMANDS {
            let tool = tool(command, &path).env("STATE_DIR", &state);
            tool.run().assert_one_error(2, &["--report", "state"]);
        }
    }
    assert!(!state.exists());
}

#[test]
fn what_cannot_be_written_is_told_before_the_work() {
    let database = small_month("unwritable");
    let directory = tempfile::tempdir().unwrap();
    symlink("circle", directory.path().join("circle")).unwrap();
    symlink("nowhere/file", directory.path().join("dangling")).unwrap();
    for name in ["", "circle", "dangling", "nowhere/file", "new/"] {
        let report = directory.path().join(name);
        let tool = Tool::new(&database)
            .args(["--partition", SAMPLE_PARTITION, "--report"])
            .arg(&report);
        tool.run()
            .assert_one_error(2, &["the report", "cannot be written", "--report"]);
        assert!(!tool.state_dir().exists());
    }
}

#[test]
fn a_env_file_of_other_programs_is_read_for_what_is_ours() {
    let of_others = "LANGFUSE_INIT_USER_NAME=Jane Doe\r\nNEXTAUTH_SECRET=it's\r\nwords\r\n";
    let database = untouched();
    let ours = format!(
        "CLICKHOUSE_URL={}\r\nCLICKHOUSE_DB={}\r\nCLICKHOUSE_USER=default\r\nPARTITION=202406\r\n",
        database.server.url(),
        database.name
    );
    let tool = Tool::unconfigured().args(["--dry-run"]);
    let file = tool.directory().join(".env");
    fs::write(&file, format!("\u{feff}{of_others}{ours}{of_others}")).unwrap();
    tool.run().assert_code(0);
    fs::write(
        &file,
        format!("{of_others}{ours}CLICKHOUSE_PASSWORD=two words\r\n"),
    )
    .unwrap();
    let outcome = tool.run();
    let told = outcome.assert_one_error(2, &["line 8", ".env", "CLICKHOUSE_PASSWORD"]);
    assert!(!told.contains("two words"), "{told}");
}

#[test]
fn a_month_that_was_finished_before_is_reported_on_too() {
    let database = small_month("reported_again");
    let tool = Tool::new(&database).args(["--partition", SAMPLE_PARTITION]);
    tool.run().assert_code(0);
    let events = tool.report()["events_inserted"].clone();
    fs::remove_file(tool.directory().join("report.json")).unwrap();
    tool.run().assert_code(0);
    assert_eq!(tool.report()["events_inserted"], events);
}
