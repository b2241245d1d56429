//! Runs of the real program.

use nix::libc;
use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tempfile::TempDir;

use super::server::text;
use super::{Database, LOOK_AGAIN, Outcome};

/// How long a run of the program may take before the test gives up on it.
const TOOL_PATIENCE: Duration = Duration::from_secs(600);

/// A run of the real `events-backfill`, in a clean environment and in an empty directory, so that
/// neither the variables nor the `.env` file of the person who runs the tests play a part.
///
/// It may run several times, to resume: the state directory stays the same as long as this value
/// lives. `--state-dir` and `--report` are set unless the test sets them, as an argument or in the
/// environment. Root spans and experiments are turned off where the test says nothing of them: see
/// [`Tool::with_defaults`].
pub struct Tool {
    directory: TempDir,
    has_defaults: bool,
    arguments: Vec<OsString>,
    environment: BTreeMap<OsString, OsString>,
    launcher: Vec<&'static str>,
}

impl Tool {
    /// The program with the connection to a database as the user `default`, and no other argument.
    pub fn new(database: &Database) -> Tool {
        Tool::unconfigured()
            .env("CLICKHOUSE_URL", database.server.url())
            .env("CLICKHOUSE_DB", &database.name)
            .env("CLICKHOUSE_USER", "default")
            .env("CLICKHOUSE_PASSWORD", "")
    }

    /// The program without any connection.
    pub fn unconfigured() -> Tool {
        let directory = tempfile::Builder::new()
            .prefix("events-backfill-test.")
            .tempdir()
            .expect("a temporary directory can be made");
        // The last one says where the lines are counted that a run has reached: see CONTRIBUTING.md.
        let environment = [
            "PATH",
            "HOME",
            "TMPDIR",
            "RUST_BACKTRACE",
            "LLVM_PROFILE_FILE",
        ]
        .into_iter()
        .filter_map(|name| Some((name.into(), env::var_os(name)?)));
        // `TEST_ENGINE=clickhouse cargo test` runs all tests with another engine.
        let engine = env::var_os("TEST_ENGINE").map(|engine| ("ENGINE".into(), engine));
        let environment = environment.chain(engine).collect();
        Tool {
            directory,
            has_defaults: false,
            arguments: Vec::new(),
            environment,
            launcher: Vec::new(),
        }
    }

    /// Leaves to the program whether it writes root spans, and says what belongs to experiments.
    pub fn with_defaults(mut self) -> Tool {
        self.has_defaults = true;
        self
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl Into<OsString>) -> Tool {
        self.arguments.push(argument.into());
        self
    }

    /// Adds arguments.
    pub fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Tool {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Has another program start it, which is given it with its arguments.
    pub fn started_by<const N: usize>(mut self, launcher: [&'static str; N]) -> Tool {
        self.launcher = launcher.to_vec();
        self
    }

    /// Takes the argument away again, for a later run that is different. Does nothing if it is not
    /// there; the value of a flag is an argument of its own.
    pub fn without_arg(mut self, argument: &str) -> Tool {
        self.arguments.retain(|other| other != argument);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Tool {
        self.environment.insert(name.into(), value.into());
        self
    }

    /// Takes an environment variable away.
    pub fn without_env(mut self, name: &str) -> Tool {
        self.environment.remove(OsStr::new(name));
        self
    }

    /// The directory in which the program runs; a `.env` file would have its place here.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The state directory, unless the test has set another.
    pub fn state_dir(&self) -> PathBuf {
        self.directory().join("state")
    }

    /// Runs the program to its end.
    pub fn run(&self) -> Outcome {
        self.spawn().wait()
    }

    /// Runs it, kills it (SIGKILL) at random moments, at most `kills` times, and resumes it until it
    /// is done. `checkpoint` is there once there is something to resume.
    pub fn run_with_kills(mut self, kills: u32, checkpoint: &Path) -> Tool {
        let mut random = fastrand::Rng::with_seed(fastrand::u64(..));
        let mut killed = 0;
        loop {
            self = self.without_arg("--resume");
            if checkpoint.exists() {
                self = self.arg("--resume");
            }
            let mut run = self.spawn();
            if killed < kills {
                thread::sleep(Duration::from_millis(random.u64(50..1_500)));
                if run.is_running() {
                    run.kill();
                    run.wait();
                    killed += 1;
                    continue;
                }
            }
            run.wait().assert_code(0);
            println!("killed {killed} times");
            return self;
        }
    }

    /// Starts the program and goes on.
    pub fn spawn(&self) -> Running {
        let started = Instant::now();
        let program = env!("CARGO_BIN_EXE_events-backfill");
        let mut command = match self.launcher.split_first() {
            Some((launcher, arguments)) => {
                let mut command = Command::new(launcher);
                command.args(arguments).arg(program);
                command
            }
            None => Command::new(program),
        };
        command
            .args(&self.arguments)
            .env_clear()
            .envs(&self.environment);
        if !self.sets("--state-dir", "STATE_DIR") {
            command.arg("--state-dir").arg(self.state_dir());
        }
        if !self.sets("--report", "REPORT") {
            command.arg("--report").arg(self.report_file());
        }
        command.args(self.turned_off());
        let mut child = command
            .current_dir(self.directory())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program can be started");
        let stdout = collect(child.stdout.take().expect("it is a pipe"));
        let stderr = collect(child.stderr.take().expect("it is a pipe"));
        Running {
            child,
            started,
            stdout: Some(stdout),
            stderr: Some(stderr),
        }
    }

    /// What the last run wrote to the file of `--report`.
    pub fn report(&self) -> serde_json::Value {
        let file = self.report_file();
        let report = fs::read(&file)
            .unwrap_or_else(|error| panic!("there is no report at {}: {error}", file.display()));
        serde_json::from_slice(&report).unwrap_or_else(|error| {
            panic!("the report is not JSON: {error}\n{}", text(report.clone()))
        })
    }

    fn report_file(&self) -> PathBuf {
        self.directory().join("report.json")
    }

    /// Flags that turn off what most tests are not about.
    fn turned_off(&self) -> Vec<&'static str> {
        let shows_something = [
            "status",
            "report",
            "help",
            "--help",
            "-h",
            "--version",
            "-V",
        ];
        let says = |words: &[&str]| {
            let mut arguments = self.arguments.iter();
            arguments.any(|argument| words.iter().any(|word| argument == word))
        };
        if self.has_defaults || says(&shows_something) {
            return Vec::new();
        }
        let mut flags = Vec::new();
        if !self.sets("--root-spans", "ROOT_SPANS")
            && !self.sets("--no-root-spans", "NO_ROOT_SPANS")
            && !self.sets("--only", "ROOT_SPANS")
        {
            flags.push("--no-root-spans");
        }
        if !self.sets("--experiments", "EXPERIMENTS")
            && !self.sets("--no-experiments", "NO_EXPERIMENTS")
        {
            flags.push("--no-experiments");
        }
        flags
    }

    fn sets(&self, flag: &str, variable: &str) -> bool {
        let with_value = format!("{flag}=");
        self.environment.contains_key(OsStr::new(variable))
            || self.arguments.iter().any(|argument| {
                argument == flag
                    || argument
                        .as_encoded_bytes()
                        .starts_with(with_value.as_bytes())
            })
    }
}

/// A run that goes on. It is killed when it is dropped.
pub struct Running {
    child: Child,
    started: Instant,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
}

impl Running {
    /// The number of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether the program has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("a child process can be looked at")
            .is_none()
    }

    /// Asks the program to end, as `kill` does.
    pub fn terminate(&mut self) {
        self.signal(libc::SIGTERM);
    }

    /// Asks the program to end, as Ctrl-C does.
    pub fn interrupt(&mut self) {
        self.signal(libc::SIGINT);
    }

    /// Ends the program at once, as a crash would.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
    }

    /// Sends a signal to the program, if it has not ended yet.
    pub fn signal(&mut self, signal: i32) {
        if self.is_running() {
            let id = libc::pid_t::try_from(self.id()).expect("the number of a process is small");
            // SAFETY: sending a signal touches no memory of this process, and a child that nobody
            // has waited for keeps its number.
            unsafe { libc::kill(id, signal) };
        }
    }

    /// Waits for the end of the program. Panics if it takes far too long.
    pub fn wait(mut self) -> Outcome {
        while self.is_running() {
            if self.started.elapsed() > TOOL_PATIENCE {
                self.kill();
                let outcome = self.outcome();
                panic!(
                    "the program had not ended after {TOOL_PATIENCE:?}\n{}",
                    outcome.output()
                );
            }
            thread::sleep(LOOK_AGAIN);
        }
        self.outcome()
    }

    fn outcome(&mut self) -> Outcome {
        let status = self
            .child
            .wait()
            .expect("a child process can be waited for");
        let duration = self.started.elapsed();
        let join = |reader: Option<JoinHandle<Vec<u8>>>| {
            text(
                reader
                    .expect("taken once")
                    .join()
                    .expect("reading does not panic"),
            )
        };
        Outcome {
            code: status.code(),
            stdout: join(self.stdout.take()),
            stderr: join(self.stderr.take()),
            duration,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads to the end in a thread of its own, so that the program never waits for its reader.
fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}
