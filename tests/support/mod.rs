//! What the integration tests stand on: a real ClickHouse server, databases in it, and runs of the
//! real program.
//!
//! ```ignore
//! #[path = "../support/mod.rs"]
//! mod support;
//!
//! #[test]
//! fn backfills_a_month() {
//!     let database = support::Server::shared().database("month");
//!     database.load_schema();
//!     database.load_sample_month(20_000);
//!
//!     let tool = support::Tool::new(&database).args(["--partition", "202406"]);
//!     tool.run().assert_code(0);
//!
//!     assert_eq!(tool.report()["errors"], 0);
//!     assert_eq!(database.query("SELECT count() > 0 FROM events_full").unwrap(), "1\n");
//! }
//! ```
#![allow(dead_code)]

pub mod differential;
pub mod live;
pub mod mutate;
pub mod proxy;
pub mod repair;

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::libc;
use tempfile::TempDir;
use url::Url;

/// How long a server may take until it answers.
const SERVER_PATIENCE: Duration = Duration::from_secs(60);

/// How long a run of the program may take before the test gives up on it.
const TOOL_PATIENCE: Duration = Duration::from_secs(600);

/// How often something that takes time is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The month of the sample data, as the value of `--partition`.
pub const SAMPLE_PARTITION: &str = "202406";

/// The month of the sample data, as its first day.
pub const SAMPLE_MONTH: &str = "2024-06-01";

/// A user of every [`Server`] who may do everything and has a password: name and password.
pub const TESTER: (&str, &str) = ("tester", "secret-password-42");

/// A user of every [`Server`] who may read everything and write nothing: name and password.
pub const READER: (&str, &str) = ("reader", "reader-password");
/// Name and password of a user who may only read databases whose names begin with `limited`, and,
/// where the server asks for rights on system tables, of these those that a run needs.
#[allow(dead_code)]
pub const LIMITED: (&str, &str) = ("limited", "limited-password");

/// Name and password of a user who has the rights that the README asks for, on the first database of
/// a server, if it is called `granted`.
#[allow(dead_code)]
pub const OPERATOR: (&str, &str) = ("operator", "operator-password");
/// The same without the one to see which views there are.
#[allow(dead_code)]
pub const BLIND_OPERATOR: (&str, &str) = ("blind", "blind-password");

const RIGHTS: &[&str] = &[
    "SHOW DATABASES ON granted.*",
    "SELECT ON granted.traces",
    "SELECT ON granted.observations",
    "SELECT ON granted.dataset_run_items_rmt",
    "SELECT, INSERT, OPTIMIZE ON granted.events_full",
    "SELECT, INSERT, OPTIMIZE ON granted.events_core",
    "SELECT ON system.parts",
    "SELECT ON system.parts_columns",
    "SELECT ON system.processes",
    "SELECT ON system.merges",
];

fn grants(rights: &[&str]) -> String {
    let database = format!(" ON granted_{}_1.", std::process::id());
    let grants = rights.iter().map(|right| {
        let right = right.replace(" ON granted.", &database);
        format!("<query>GRANT {right}</query>")
    });
    format!("<grants>{}</grants>", grants.collect::<String>())
}

/// The path of a file in this repository.
pub fn repository_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

// -------------------------------------------------------------------------------------------------
// The server
// -------------------------------------------------------------------------------------------------

/// A ClickHouse server of one's own: see [`Server::start`].
#[derive(Default)]
pub struct Options {
    /// More elements for the server's configuration, for example
    /// `<max_server_memory_usage>2147483648</max_server_memory_usage>`.
    pub config: String,
    /// Elements for the settings profile of all users, for example `<max_threads>1</max_threads>`.
    pub profile: String,
    /// More settings profiles, each of which has a user of its name without password.
    pub profiles: Vec<(&'static str, String)>,
    /// More elements of these users, by the name of the profile: filters of rows, for example.
    pub of_users: Vec<(&'static str, String)>,
    /// Where the data lies; by default in a temporary directory that goes away with the server.
    pub data: Option<PathBuf>,
    /// The port of the HTTP interface; by default one that is free.
    pub http_port: Option<u16>,
}

/// A real ClickHouse server on the loopback address, with `system.query_log`, and with the users
/// `default` (no password), [`TESTER`] and [`READER`].
///
/// It ends when it is dropped, and at the latest together with the test binary.
pub struct Server {
    directory: TempDir,
    data: PathBuf,
    http_port: u16,
    tcp_port: u16,
    process: Arc<Mutex<Option<ServerProcess>>>,
    databases: AtomicU32,
    crashes: AtomicU32,
}

/// The process of a [`Server`] that runs. It ends when its standard input is closed.
struct ServerProcess {
    child: Child,
    _lifeline: ChildStdin,
}

static SHARED: OnceLock<Server> = OnceLock::new();

/// A new database of the shared server with the small month.
pub fn small_month(name_hint: &str) -> Database<'static> {
    let database = Server::shared().database(name_hint);
    database.load_small_month();
    database
}

/// The small month for all tests that leave the tables as they are.
pub fn untouched() -> &'static Database<'static> {
    static DATABASE: OnceLock<Database<'static>> = OnceLock::new();
    DATABASE.get_or_init(|| small_month("untouched"))
}

impl Server {
    /// The one server that all tests of a test binary share. Use [`Server::database`] to keep them
    /// apart.
    pub fn shared() -> &'static Server {
        SHARED.get_or_init(|| Server::start(Options::default()))
    }

    /// Starts a server and waits until it answers.
    pub fn start(options: Options) -> Server {
        let directory = tempfile::Builder::new()
            .prefix("events-backfill-test-server.")
            .tempdir()
            .expect("a temporary directory can be made");
        let data = match &options.data {
            Some(data) => data.clone(),
            None => directory.path().join("data"),
        };
        write_configuration(directory.path(), &options);

        // Another process may take a free port in the moment before the server does.
        let mut attempts = 3;
        loop {
            let [http_port, tcp_port] = free_ports();
            let server_ports = (options.http_port.unwrap_or(http_port), tcp_port);
            match start_process(directory.path(), &data, server_ports) {
                Ok(process) => {
                    let process = Arc::new(Mutex::new(Some(process)));
                    clean_up_at_exit(directory.path(), &process);
                    return Server {
                        directory,
                        data,
                        http_port: server_ports.0,
                        tcp_port: server_ports.1,
                        process,
                        databases: AtomicU32::new(0),
                        crashes: AtomicU32::new(0),
                    };
                }
                Err(error) if error.contains("Address already in use") && attempts > 1 => {
                    attempts -= 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The address of the HTTP interface, as the value of `CLICKHOUSE_URL`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.http_port)
    }

    /// The port of the HTTP interface.
    pub fn http_port(&self) -> u16 {
        self.http_port
    }

    /// The port of the native TCP interface, for example for the table function `remote`.
    pub fn tcp_port(&self) -> u16 {
        self.tcp_port
    }

    /// Ends the server as a crash would, with SIGKILL. Its data stays.
    pub fn kill(&self) {
        // A test that panicked while it held the lock must not keep the others from cleaning up.
        let mut process = self
            .process
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(mut process) = process.take() {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }

    /// Starts the server again, after killing it if it runs: same address, same data.
    pub fn restart(&self) {
        self.kill();
        let ports = (self.http_port, self.tcp_port);
        let process = start_process(self.directory.path(), &self.data, ports)
            .unwrap_or_else(|error| panic!("{error}"));
        *self.process.lock().unwrap() = Some(process);
    }

    /// How often ClickHouse has ended by itself. It is started again if it has just done so.
    pub fn crashes(&self) -> u32 {
        let mut process = self
            .process
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(running) = process.as_mut()
            && let Ok(Some(status)) = running.child.try_wait()
        {
            println!("ClickHouse itself has ended: {status}");
            let ports = (self.http_port, self.tcp_port);
            let again = start_process(self.directory.path(), &self.data, ports);
            *process = Some(again.unwrap_or_else(|error| panic!("{error}")));
            self.crashes.fetch_add(1, Ordering::Relaxed);
        }
        self.crashes.load(Ordering::Relaxed)
    }

    /// Runs a test again, up to twice, where ClickHouse crashed while it ran: what has failed then
    /// says nothing of this program.
    pub fn unless_it_crashes(&self, test: impl Fn()) {
        for _ in 0..2 {
            let before = self.crashes();
            match std::panic::catch_unwind(std::panic::AssertUnwindSafe(&test)) {
                Ok(()) => return,
                Err(panic) if self.crashes() == before => std::panic::resume_unwind(panic),
                Err(_) => println!("ClickHouse crashed meanwhile, so the test runs again"),
            }
        }
        test();
    }

    /// Runs a statement, and gives back what ClickHouse answers: the result, or its exception.
    pub fn query(&self, sql: &str) -> Result<String, String> {
        self.query_bytes(sql).map(text)
    }

    /// Like [`Server::query`], for results that need not be UTF-8.
    pub fn query_bytes(&self, sql: &str) -> Result<Vec<u8>, String> {
        self.request(&[], sql.as_bytes())
    }

    /// Runs an INSERT statement that ends with its FORMAT, with the data in that format.
    pub fn insert_bytes(&self, sql: &str, data: &[u8]) -> Result<(), String> {
        self.request(&[("query", sql)], data).map(drop)
    }

    /// Runs the statements of a file one after another, with query parameters for all of them.
    ///
    /// A statement ends with a semicolon at the end of a line, and lines that begin with `--` are
    /// comments. Panics if the file can't be read or ClickHouse refuses a statement.
    pub fn execute_file(&self, path: &Path, database: &str, parameters: &[(&str, &str)]) {
        let script = fs::read_to_string(path)
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
        let names: Vec<String> = parameters
            .iter()
            .map(|(name, _)| format!("param_{name}"))
            .collect();
        let mut request = vec![("database", database)];
        request.extend(
            names
                .iter()
                .zip(parameters)
                .map(|(name, (_, value))| (&**name, *value)),
        );

        for statement in statements(&script) {
            if let Err(error) = self.request(&request, statement.as_bytes()) {
                let path = path.display();
                panic!("ClickHouse refused a statement of {path}: {error}\n\n{statement}");
            }
        }
    }

    /// Makes a new, empty database. The hint becomes part of its name.
    pub fn database(&self, name_hint: &str) -> Database<'_> {
        let number = self.databases.fetch_add(1, Ordering::Relaxed) + 1;
        // A fixed data directory may hold databases of an earlier server.
        let name = format!("{name_hint}_{}_{number}", std::process::id());
        self.query(&format!("CREATE DATABASE `{name}`"))
            .unwrap_or_else(|error| panic!("cannot create the database {name}: {error}"));
        Database { server: self, name }
    }

    /// One HTTP request with URL parameters.
    pub fn request(&self, parameters: &[(&str, &str)], body: &[u8]) -> Result<Vec<u8>, String> {
        let mut url = Url::parse(&self.url()).expect("this is an address");
        url.query_pairs_mut()
            .extend_pairs(parameters)
            // An exception can come after the first rows. Waiting for the end gives it a status.
            .append_pair("wait_end_of_query", "1");

        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build()
            .into();
        let mut response = agent
            .post(url.as_str())
            .send(body)
            .map_err(|error| error.to_string())?;
        let answer = response
            .body_mut()
            .with_config()
            .limit(u64::MAX)
            .read_to_vec()
            .map_err(|error| error.to_string())?;
        if response.status().is_success() {
            Ok(answer)
        } else {
            Err(text(answer))
        }
    }
}

/// Most servers are statics, which are not dropped: their data would stay behind.
fn clean_up_at_exit(directory: &Path, process: &Arc<Mutex<Option<ServerProcess>>>) {
    type Started = (PathBuf, Arc<Mutex<Option<ServerProcess>>>);
    static STARTED: Mutex<Vec<Started>> = Mutex::new(Vec::new());
    extern "C" fn clean_up() {
        let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
        for (directory, process) in started.drain(..) {
            let mut process = process.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(mut process) = process.take() {
                let _ = process.child.kill();
                let _ = process.child.wait();
            }
            let _ = fs::remove_dir_all(directory);
        }
    }
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if started.is_empty() {
        // SAFETY: the function does not panic and needs nothing that ends before the process.
        unsafe { libc::atexit(clean_up) };
    }
    started.push((directory.to_owned(), Arc::clone(process)));
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts the launcher and waits until the server answers.
fn start_process(
    directory: &Path,
    data: &Path,
    (http_port, tcp_port): (u16, u16),
) -> Result<ServerProcess, String> {
    let launcher = launcher();
    let log = directory.join("server.log");
    let output = File::create(&log).expect("the server's log can be written");
    let mut child = Command::new(&launcher)
        .arg("--exit-with-stdin")
        .arg("--path")
        .arg(data)
        .args(["--http-port", &http_port.to_string()])
        .args(["--tcp-port", &tcp_port.to_string()])
        .arg("--config-file")
        .arg(directory.join("config.xml"))
        .stdin(Stdio::piped())
        .stdout(output.try_clone().expect("a file handle can be copied"))
        .stderr(output)
        .spawn()
        .map_err(|error| format!("cannot run {}: {error}", launcher.display()))?;
    let lifeline = child.stdin.take().expect("standard input is a pipe");

    let started = Instant::now();
    while !answers_ping(http_port) {
        let ended = child
            .try_wait()
            .expect("a child process can be looked at")
            .is_some();
        if ended || started.elapsed() > SERVER_PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            let log = fs::read(&log).map(text).unwrap_or_default();
            return Err(format!(
                "ClickHouse did not start. If something is missing, `make test` gets it.\n{log}"
            ));
        }
        thread::sleep(LOOK_AGAIN);
    }
    Ok(ServerProcess {
        child,
        _lifeline: lifeline,
    })
}

/// `target/<profile>/examples/embedded_clickhouse`, seen from `target/<profile>/deps/<this test>`.
fn launcher() -> PathBuf {
    let this_test = env::current_exe().expect("the path of this program is known");
    let profile = this_test
        .parent()
        .and_then(Path::parent)
        .expect("tests lie in target/*/deps");
    let launcher = profile.join("examples").join("embedded_clickhouse");
    assert!(
        launcher.is_file(),
        "{} is not built; run `make test`, or `cargo build --examples` with this profile",
        launcher.display()
    );
    launcher
}

fn answers_ping(http_port: u16) -> bool {
    ureq::get(format!("http://127.0.0.1:{http_port}/ping"))
        .config()
        .timeout_global(Some(Duration::from_secs(2)))
        .build()
        .call()
        .and_then(|mut response| response.body_mut().read_to_string())
        .is_ok_and(|answer| answer == "Ok.\n")
}

/// Ports that were free a moment ago, all different.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners: [TcpListener; N] = std::array::from_fn(|_| {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a free port")
    });
    listeners.map(|listener| listener.local_addr().expect("it is bound").port())
}

/// Writes `config.xml` and `users.xml`.
fn write_configuration(directory: &Path, options: &Options) {
    let Options {
        config, profile, ..
    } = options;
    let profiles: String = options
        .profiles
        .iter()
        .map(|(name, settings)| format!("<{name}>{settings}</{name}>"))
        .collect();
    let users_of_profiles: String = options
        .profiles
        .iter()
        .map(|(name, _)| {
            let more = options.of_users.iter().filter(|user| user.0 == *name);
            let more: String = more.map(|user| user.1.as_str()).collect();
            format!(
                "<{name}><password></password><networks><ip>::/0</ip></networks>
                <profile>{name}</profile><quota>default</quota>{more}</{name}>"
            )
        })
        .collect();
    let users = directory.join("users.xml");
    let config = format!(
        "<clickhouse>
            <query_log>
                <database>system</database>
                <table>query_log</table>
                <flush_interval_milliseconds>1000</flush_interval_milliseconds>
            </query_log>
            <user_directories><users_xml><path>{}</path></users_xml></user_directories>
            {config}
        </clickhouse>",
        users.display(),
    );
    let user = |(name, password): (&str, &str), more: &str| {
        format!(
            "<{name}>
                <password>{password}</password>
                <networks><ip>::/0</ip></networks>
                <profile>default</profile>
                <quota>default</quota>
                {more}
            </{name}>"
        )
    };
    let users_xml = format!(
        "<clickhouse>
            <profiles><default>{profile}</default>{profiles}</profiles>
            <quotas><default/></quotas>
            <users>{}{}{}{}{}{}{users_of_profiles}</users>
        </clickhouse>",
        user(("default", ""), ""),
        user(TESTER, ""),
        user(
            READER,
            "<grants><query>GRANT SELECT, SHOW ON *.*</query></grants>"
        ),
        user(
            LIMITED,
            "<grants>
                <query>GRANT SELECT, SHOW ON limited*.*</query>
                <query>GRANT SELECT ON system.parts</query>
                <query>GRANT SELECT ON system.parts_columns</query>
            </grants>"
        ),
        user(
            OPERATOR,
            &grants(&[RIGHTS, &["SHOW ON granted.*"]].concat())
        ),
        user(BLIND_OPERATOR, &grants(RIGHTS)),
    );
    fs::write(directory.join("config.xml"), config).expect("the configuration can be written");
    fs::write(users, users_xml).expect("the users can be written");
}

/// The statements of a script, without comments and without their semicolons. The same rule as in
/// `scripts/run-sql.sh`.
fn statements(script: &str) -> Vec<String> {
    let mut statements = Vec::new();
    let mut statement = String::new();
    for line in script
        .lines()
        .filter(|line| !line.trim_start().starts_with("--"))
    {
        match line.trim_end().strip_suffix(';') {
            Some(end) => statements.push(std::mem::take(&mut statement) + end),
            None => {
                statement.push_str(line);
                statement.push('\n');
            }
        }
    }
    statements.push(statement);
    statements.retain(|statement| !statement.trim().is_empty());
    statements
}

/// For messages and for results that are known to be text.
fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

// -------------------------------------------------------------------------------------------------
// A database
// -------------------------------------------------------------------------------------------------

/// A database of one test. Statements need not name it: it is the current one.
pub struct Database<'server> {
    pub server: &'server Server,
    pub name: String,
}

impl Database<'_> {
    /// Runs a statement, and gives back what ClickHouse answers: the result, or its exception.
    pub fn query(&self, sql: &str) -> Result<String, String> {
        self.query_bytes(sql).map(text)
    }

    /// Like [`Database::query`], for results that need not be UTF-8.
    pub fn query_bytes(&self, sql: &str) -> Result<Vec<u8>, String> {
        self.server
            .request(&[("database", &self.name)], sql.as_bytes())
    }

    /// Runs an INSERT statement that ends with its FORMAT, with the data in that format.
    pub fn insert_bytes(&self, sql: &str, data: &[u8]) -> Result<(), String> {
        let parameters = [("database", self.name.as_str()), ("query", sql)];
        self.server.request(&parameters, data).map(drop)
    }

    /// See [`Server::execute_file`].
    pub fn execute_file(&self, path: &Path, parameters: &[(&str, &str)]) {
        self.server.execute_file(path, &self.name, parameters);
    }

    /// Creates the tables of a current Langfuse.
    pub fn load_schema(&self) {
        self.execute_file(&repository_file("bench-data/schema.sql"), &[]);
    }

    /// Fills `traces`, `observations` and `dataset_run_items_rmt` for the month
    /// [`SAMPLE_PARTITION`], with about so many distinct observations.
    pub fn load_sample_month(&self, observations: u64) {
        self.load_month(SAMPLE_MONTH, observations);
    }

    /// Creates the tables of a current Langfuse and fills them with a few rows of the month
    /// [`SAMPLE_PARTITION`].
    pub fn load_small_month(&self) {
        self.load_schema();
        self.execute_file(&repository_file("tests/support/small-month.sql"), &[]);
    }

    /// Like [`Database::load_sample_month`], for the month that begins on the given day.
    pub fn load_month(&self, first_day: &str, observations: u64) {
        self.execute_file(
            &repository_file("bench-data/sample-month.sql"),
            &[
                ("month", first_day),
                ("observations", &observations.to_string()),
            ],
        );
    }
}

// -------------------------------------------------------------------------------------------------
// The program
// -------------------------------------------------------------------------------------------------

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
        let environment = ["PATH", "HOME", "TMPDIR", "RUST_BACKTRACE"]
            .into_iter()
            .filter_map(|name| Some((name.into(), env::var_os(name)?)))
            .collect();
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
        let shows_something = ["status", "help", "--help", "-h", "--version", "-V"];
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

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code; none if a signal ended the program.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub duration: Duration,
}

impl Outcome {
    /// Panics, with everything the program printed, if the exit code is another one.
    #[track_caller]
    pub fn assert_code(&self, expected: i32) -> &Outcome {
        assert!(
            self.code == Some(expected),
            "expected exit code {expected}, got {:?}\n{}",
            self.code,
            self.output()
        );
        self
    }

    /// Panics, with everything the program printed, if a text is not in its standard error.
    #[track_caller]
    pub fn assert_stderr_contains(&self, expected: &str) -> &Outcome {
        assert!(
            self.stderr.contains(expected),
            "expected {expected:?} in the standard error\n{}",
            self.output()
        );
        self
    }

    /// Panics unless the run ended with that code and one error, the last line, that has these
    /// words; gives that line.
    #[track_caller]
    pub fn assert_one_error(&self, code: i32, words: &[&str]) -> &str {
        self.assert_code(code);
        let last = self.stderr.lines().last().unwrap_or_default();
        let errors = self
            .stderr
            .lines()
            .filter(|line| line.starts_with("error:"));
        assert_eq!(errors.count(), 1, "one sentence\n{}", self.stderr);
        for word in words.iter().chain(&["error: "]) {
            assert!(last.contains(word), "{word:?} in the last line: {last}");
        }
        last
    }

    fn output(&self) -> String {
        format!("--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr)
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
