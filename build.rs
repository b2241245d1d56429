//! Tells the program which commit it was built from, and for which target: `--version` says so.
//!
//! The commit is that of the git work tree the package lies in, `-dirty` where what the program is made of
//! differs from it. Where there is no such work tree, as in a tarball, the variable `SOURCE_COMMIT` may name
//! the commit; where it is set, it counts before git. With neither there is none.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What the program is made of. A change in anything else, a test for example, makes it no other program.
const MADE_OF: [&str; 5] = ["src", "build.rs", "Cargo.toml", "Cargo.lock", ".cargo"];

/// Hexadecimal digits that are shown of a commit; git shows more where they do not suffice.
const SHOWN_DIGITS: usize = 7;

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed=SOURCE_COMMIT");
    for path in MADE_OF.iter().filter(|path| Path::new(path).exists()) {
        println!("cargo::rerun-if-changed={path}");
    }
    let named = env::var("SOURCE_COMMIT").ok();
    let commit = match named.as_deref().map(str::trim) {
        None | Some("") => commit_of_work_tree(),
        Some(named) => match shortened(named) {
            Some(commit) => Some(commit),
            None => {
                println!(
                    "cargo::error=SOURCE_COMMIT is '{named}': set it to the commit's hash, {SHOWN_DIGITS} to 64 \
                     hexadecimal digits"
                );
                return ExitCode::FAILURE;
            }
        },
    };
    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let target = env::var("TARGET").unwrap_or_default();
    let origin = commit.map(|commit| commit + ", ").unwrap_or_default();
    println!("cargo::rustc-env=EVENTS_BACKFILL_VERSION={version} ({origin}{target})");
    ExitCode::SUCCESS
}

/// A hash as it is shown, with the `-dirty` it may end with; `None` where it is no hash.
fn shortened(named: &str) -> Option<String> {
    let hash = named.strip_suffix("-dirty").unwrap_or(named);
    let is_hash = (SHOWN_DIGITS..=64).contains(&hash.len())
        && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hash.then(|| format!("{}{}", &hash[..SHOWN_DIGITS], &named[hash.len()..]))
}

/// The commit of the package's own work tree, if there is one: not of another that it happens to lie in.
fn commit_of_work_tree() -> Option<String> {
    let root = PathBuf::from(git(&["rev-parse", "--show-toplevel"])?);
    let here = env::current_dir().ok()?;
    if fs::canonicalize(root).ok()? != fs::canonicalize(here).ok()? {
        return None;
    }
    watch_head();
    let digits = format!("--short={SHOWN_DIGITS}");
    let hash = git(&["rev-parse", &digits, "HEAD"])?;
    let mut status = vec!["status", "--porcelain", "--"];
    status.extend(MADE_OF);
    let is_clean = git(&status)?.is_empty();
    Some(if is_clean { hash } else { hash + "-dirty" })
}

/// Has cargo run this again when another commit is checked out: git notes each move of `HEAD` in its log,
/// and where it keeps no log, the branch itself moves.
fn watch_head() {
    for name in ["HEAD", "logs/HEAD", "refs/heads", "packed-refs"] {
        let Some(path) = git(&["rev-parse", "--git-path", name]) else {
            continue;
        };
        // What is not there would have cargo run this every time.
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
            if name == "logs/HEAD" {
                return;
            }
        }
    }
}

/// What git prints, without the line's end; `None` where there is no git, or where it fails.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .arg("--no-optional-locks")
        .args(arguments)
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim_end().to_owned())
}
