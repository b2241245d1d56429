//! Starts a real ClickHouse server on a machine that has none installed.
//!
//! The tests and the demo need the real thing: its SQL, its MergeTree engines, its HTTP handler. The
//! npm registry carries ClickHouse as a shared library (`libchdb.so`, see
//! `scripts/fetch-clickhouse.sh`), and in that library lives `clickhouse local`, which can open real
//! listeners. This program loads the library, calls its one entry point and asks it to listen, and
//! the process is a ClickHouse server from then on. It is ready when `GET /ping` answers, after about
//! four seconds.
//!
//! Where there is a `clickhouse` executable, `--binary` (or `CLICKHOUSE_BINARY`) runs that instead.
//!
//! This is a tool for the tests and the demo. It is not part of the product: examples are built
//! together with the tests, may use development dependencies, and never get into the release
//! binary. Do not keep data in it that you want to keep. There is no Keeper in it, so there are no
//! Replicated tables.
//!
//! ```text
//! embedded_clickhouse --path /tmp/data --http-port 18123 --exit-with-stdin
//! ```

// A test or a benchmark ends by a panic, and its numbers are small.
#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::expect_used,
    clippy::missing_docs_in_private_items,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub
)]

use std::convert::Infallible;
use std::env;
use std::ffi::{CString, OsString, c_char, c_int, c_void};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::{CommandExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::ptr;
use std::thread;
use std::time::Duration;

use clap::{Parser, value_parser};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use nix::libc;

/// Must agree with `scripts/fetch-clickhouse.sh`.
const CLICKHOUSE_VERSION: &str = "26.7.3-stable.1";

/// How long a server may take to end in good order before it is killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Run a real ClickHouse server from a shared library, for the tests and the demo.
#[derive(Parser)]
struct Arguments {
    /// ClickHouse as a shared library, as fetched by scripts/fetch-clickhouse.sh
    #[arg(long, value_name = "FILE", env = "CLICKHOUSE_LIBRARY", default_value_os_t = library_in_cache(), value_parser = value_parser!(OsString))]
    library: OsString,

    /// A `clickhouse` executable to run as a server instead of the library
    #[arg(long, value_name = "FILE", env = "CLICKHOUSE_BINARY", value_parser = value_parser!(OsString))]
    binary: Option<OsString>,

    /// Where the server keeps its data; created if it is not there
    #[arg(long, value_name = "DIR", required_unless_present = "watch")]
    path: Option<PathBuf>,

    /// Port of the HTTP interface
    #[arg(long, value_name = "PORT", default_value_t = 8123)]
    http_port: u16,

    /// Port of the native TCP interface, which stays closed unless this is given
    #[arg(long, value_name = "PORT")]
    tcp_port: Option<u16>,

    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    listen_host: String,

    /// A server configuration in XML: users, limits, the query log
    #[arg(long, value_name = "FILE")]
    config_file: Option<PathBuf>,

    /// End the server when standard input ends, so that it never outlives the program that started it
    #[arg(long)]
    exit_with_stdin: bool,

    /// Be the companion process that ends its parent together with standard input
    #[arg(long, hide = true)]
    watch: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.watch {
        end_parent_with_stdin();
        return ExitCode::SUCCESS;
    }
    match serve(&arguments) {
        Ok(never) => match never {},
        Err(message) => {
            eprintln!("embedded_clickhouse: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Turns this process into a server. Comes back only if that failed.
fn serve(arguments: &Arguments) -> Result<Infallible, String> {
    let path = arguments.path.as_deref().expect("clap requires --path");
    fs::create_dir_all(path).map_err(|error| {
        format!(
            "cannot create the data directory {}: {error}",
            path.display()
        )
    })?;

    // An environment variable that is set to nothing counts as one that is not set.
    match arguments
        .binary
        .as_deref()
        .filter(|binary| !binary.is_empty())
    {
        Some(binary) => serve_from_binary(Path::new(binary), path, arguments),
        None => serve_from_library(path, arguments),
    }
}

/// Replaces this process by `clickhouse server`, so that every signal, SIGKILL included, reaches the
/// server itself.
fn serve_from_binary(
    binary: &Path,
    path: &Path,
    arguments: &Arguments,
) -> Result<Infallible, String> {
    // A bare name is looked up in PATH; a path is relative to the directory the user is in.
    let program = match binary.components().count() {
        1 => binary.to_owned(),
        _ => absolute(binary)?,
    };
    let mut server = Command::new(program);
    server.arg("server");
    if let Some(file) = &arguments.config_file {
        server.arg(setting(
            "config-file",
            absolute(file)?.as_os_str().as_bytes(),
        ));
    }
    server
        .arg("--")
        .arg(setting("path", absolute(path)?.as_os_str().as_bytes()))
        .arg(format!("--http_port={}", arguments.http_port))
        .arg(format!("--listen_host={}", arguments.listen_host))
        .arg("--logger.console=true")
        .arg("--logger.level=warning");
    if let Some(port) = arguments.tcp_port {
        server.arg(format!("--tcp_port={port}"));
    }
    // Without a configuration file the server looks for one in the current directory.
    server.current_dir(path);

    if arguments.exit_with_stdin {
        start_watcher()?;
    }
    let error = server.stdin(Stdio::null()).exec();
    Err(format!("cannot run {}: {error}", binary.display()))
}

/// Runs `clickhouse local` inside this process and has it listen.
fn serve_from_library(path: &Path, arguments: &Arguments) -> Result<Infallible, String> {
    let file = match arguments.library.as_os_str() {
        empty if empty.is_empty() => PathBuf::from(library_in_cache()),
        given => PathBuf::from(given),
    };
    if !file.is_file() {
        return Err(format!(
            "there is no ClickHouse library at {}; run scripts/fetch-clickhouse.sh, or set \
             CLICKHOUSE_LIBRARY to the library or CLICKHOUSE_BINARY to a clickhouse executable",
            file.display()
        ));
    }
    let command_line = command_line_of_local(path, arguments)?;
    // SAFETY: loading runs the initializers of ClickHouse itself, which expect nothing of this process.
    let library = unsafe { Library::open(Some(&file), RTLD_NOW | RTLD_GLOBAL) }
        .map_err(|error| format!("cannot load the ClickHouse library: {error}"))?;

    if arguments.exit_with_stdin {
        start_watcher()?;
    }
    detach_stdin().map_err(|error| format!("cannot open /dev/null: {error}"))?;
    run_local(&library, &command_line)?;
    Err("ClickHouse stopped by itself; what it printed before this says why".to_owned())
}

/// The arguments of `clickhouse local` that make a server of it.
fn command_line_of_local(path: &Path, arguments: &Arguments) -> Result<Vec<CString>, String> {
    let mut settings = vec![
        setting("path", path.as_os_str().as_bytes()),
        setting("http_port", arguments.http_port.to_string().as_bytes()),
        setting("listen_host", arguments.listen_host.as_bytes()),
    ];
    let mut statements = vec!["SYSTEM START LISTEN HTTP"];
    if let Some(port) = arguments.tcp_port {
        settings.push(setting("tcp_port", port.to_string().as_bytes()));
        statements.push("SYSTEM START LISTEN TCP");
    }
    if let Some(file) = &arguments.config_file {
        settings.push(setting("config-file", file.as_os_str().as_bytes()));
    }
    // `clickhouse local` ends after its last statement. This one lasts for some eleven days.
    statements.push(
        "SELECT sleepEachRow(1) FROM numbers(1000000) SETTINGS max_block_size = 1, \
         function_sleep_max_microseconds_per_block = 0 FORMAT Null",
    );
    settings.push(setting("query", statements.join("; ").as_bytes()));

    [b"clickhouse".to_vec()]
        .into_iter()
        .chain(settings.into_iter().map(OsStringExt::into_vec))
        .map(|argument| {
            CString::new(argument).map_err(|_| "an argument contains a zero byte".to_owned())
        })
        .collect()
}

/// Calls the entry point of the library, which returns only when the server has ended.
fn run_local(library: &Library, command_line: &[CString]) -> Result<(), String> {
    type Run = unsafe extern "C" fn(c_int, *mut *mut c_char) -> *mut c_void;

    let mut argv: Vec<*mut c_char> = command_line
        .iter()
        .map(|argument| argument.as_ptr().cast_mut())
        .collect();
    let argc = c_int::try_from(argv.len()).expect("there are only a few arguments");
    argv.push(ptr::null_mut());

    // SAFETY: the signature is that of the library's header (chdb.h); `argv` is ended by a null
    // pointer, and it and the strings in it live until the call returns.
    unsafe {
        let run = library
            .get::<Run>(b"chdb_query_cmdline\0")
            .map_err(|error| format!("this is not the ClickHouse library it should be: {error}"))?;
        run(argc, argv.as_mut_ptr());
    }
    Ok(())
}

/// Starts a companion process that waits for the end of standard input and then ends this process.
///
/// It is a process rather than a thread because this one may be replaced by a `clickhouse`
/// executable.
fn start_watcher() -> Result<(), String> {
    let program = env::current_exe()
        .map_err(|error| format!("cannot find the path of this program: {error}"))?;
    Command::new(program)
        .arg("--watch")
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| {
            format!("cannot start the process that watches standard input: {error}")
        })?;
    Ok(())
}

/// Waits for the end of standard input, then ends the parent process.
fn end_parent_with_stdin() {
    let parent = parent_id();
    // An error is as good a reason to stop as the end of the input.
    let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        // If the parent has ended already, its number may belong to another process by now.
        if parent_id() != parent {
            return;
        }
        // SAFETY: sending a signal touches no memory of this process.
        unsafe { libc::kill(parent as libc::pid_t, signal) };
        let mut waited = Duration::ZERO;
        while parent_id() == parent && waited < PATIENCE {
            let step = Duration::from_millis(20);
            thread::sleep(step);
            waited += step;
        }
    }
}

/// Standard input belongs to the watcher; ClickHouse must not read from it.
fn detach_stdin() -> io::Result<()> {
    let null = fs::File::open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    Ok(())
}

/// One `--name=value` argument; the value may be a path that is not UTF-8.
fn setting(name: &str, value: &[u8]) -> OsString {
    let mut argument = format!("--{name}=").into_bytes();
    argument.extend_from_slice(value);
    OsString::from_vec(argument)
}

fn absolute(path: &Path) -> Result<PathBuf, String> {
    std::path::absolute(path)
        .map_err(|error| format!("cannot make {} an absolute path: {error}", path.display()))
}

/// Where `scripts/fetch-clickhouse.sh` puts the library.
fn library_in_cache() -> OsString {
    let directory = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let cache = directory("EVENTS_BACKFILL_CACHE")
        .or_else(|| directory("XDG_CACHE_HOME").map(|cache| cache.join("events-backfill")))
        .or_else(|| directory("HOME").map(|home| home.join(".cache/events-backfill")))
        .unwrap_or_default();
    cache
        .join(format!("clickhouse-{CLICKHOUSE_VERSION}"))
        .join("libchdb.so")
        .into_os_string()
}
