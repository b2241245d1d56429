//! A real ClickHouse server.

use nix::libc;
use std::env;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use url::Url;

use super::users::{BLIND_OPERATOR, LIMITED, OPERATOR, READER, RIGHTS, TESTER, grants};
use super::{Database, LOOK_AGAIN};

/// How long a server may take until it answers.
const SERVER_PATIENCE: Duration = Duration::from_secs(60);

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
    /// The port of the native interface, likewise.
    pub tcp_port: Option<u16>,
    /// The address of this machine that it listens on; by default 127.0.0.1. With another one a server
    /// can have the ports of the first, as those of a cluster have.
    pub host: Option<&'static str>,
}

/// A real ClickHouse server on the loopback address, with `system.query_log`, and with the users
/// `default` (no password), [`TESTER`] and [`READER`].
///
/// It ends when it is dropped, and at the latest together with the test binary.
pub struct Server {
    directory: TempDir,
    data: PathBuf,
    address: Address,
    process: Arc<Mutex<Option<ServerProcess>>>,
    databases: AtomicU32,
    crashes: AtomicU32,
}

/// Where a [`Server`] listens.
#[derive(Clone, Copy)]
struct Address {
    host: &'static str,
    http_port: u16,
    tcp_port: u16,
}

/// The process of a [`Server`] that runs. It ends when its standard input is closed.
struct ServerProcess {
    child: Child,
    _lifeline: ChildStdin,
}

static SHARED: OnceLock<Server> = OnceLock::new();

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
            let address = Address {
                host: options.host.unwrap_or("127.0.0.1"),
                http_port: options.http_port.unwrap_or(http_port),
                tcp_port: options.tcp_port.unwrap_or(tcp_port),
            };
            match start_process(directory.path(), &data, address) {
                Ok(process) => {
                    let process = Arc::new(Mutex::new(Some(process)));
                    clean_up_at_exit(directory.path(), &process);
                    return Server {
                        directory,
                        data,
                        address,
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
        format!("http://{}:{}", self.address.host, self.address.http_port)
    }

    /// The port of the HTTP interface.
    pub fn http_port(&self) -> u16 {
        self.address.http_port
    }

    /// The port of the native TCP interface, for example for the table function `remote`.
    pub fn tcp_port(&self) -> u16 {
        self.address.tcp_port
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
        let process = start_process(self.directory.path(), &self.data, self.address)
            .unwrap_or_else(|error| panic!("{error}"));
        *self.process.lock().unwrap() = Some(process);
    }

    /// How often ClickHouse has ended by itself. It is started again if it has just done so.
    ///
    /// Between the abort and the end of the process ClickHouse writes a stack trace, for seconds. It no
    /// longer answers then, so one that does not answer is waited for, and killed if need be.
    pub fn crashes(&self) -> u32 {
        let mut process = self
            .process
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(running) = process.as_mut()
            && let Some(status) = self.has_ended(running)
        {
            println!("ClickHouse itself has ended: {status}");
            let again = start_process(self.directory.path(), &self.data, self.address);
            *process = Some(again.unwrap_or_else(|error| panic!("{error}")));
            self.crashes.fetch_add(1, Ordering::Relaxed);
        }
        self.crashes.load(Ordering::Relaxed)
    }

    /// How a server ended that no longer answers.
    fn has_ended(&self, running: &mut ServerProcess) -> Option<String> {
        let silent_since = Instant::now();
        loop {
            if let Ok(Some(status)) = running.child.try_wait() {
                return Some(status.to_string());
            }
            if answers_ping(self.address.host, self.address.http_port) {
                return None;
            }
            if silent_since.elapsed() > SERVER_PATIENCE {
                let _ = running.child.kill();
                let _ = running.child.wait();
                return Some("it neither answered nor ended".to_owned());
            }
            thread::sleep(LOOK_AGAIN);
        }
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

    /// Makes a new database with the sample month: Langfuse's tables, and so many observations.
    pub fn sample_month(&self, name_hint: &str, observations: u64) -> Database<'_> {
        let database = self.database(name_hint);
        database.load_schema();
        database.load_sample_month(observations);
        database
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
    Address {
        host,
        http_port,
        tcp_port,
    }: Address,
) -> Result<ServerProcess, String> {
    let launcher = launcher();
    let log = directory.join("server.log");
    let output = File::create(&log).expect("the server's log can be written");
    let mut child = Command::new(&launcher)
        .arg("--exit-with-stdin")
        .arg("--path")
        .arg(data)
        .args(["--listen-host", host])
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
    while !answers_ping(host, http_port) {
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

fn answers_ping(host: &str, http_port: u16) -> bool {
    ureq::get(format!("http://{host}:{http_port}/ping"))
        .config()
        .timeout_global(Some(Duration::from_secs(2)))
        .build()
        .call()
        .and_then(|mut response| response.body_mut().read_to_string())
        .is_ok_and(|answer| answer == "Ok.\n")
}

/// Ports that were free a moment ago, all different.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let listeners: [TcpListener; N] = std::array::from_fn(|_| {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a free port")
    });
    listeners.map(|listener| listener.local_addr().expect("it is bound").port())
}

/// An address of this machine at which nobody listened a moment ago.
pub fn free_address() -> String {
    let [port] = free_ports();
    format!("127.0.0.1:{port}")
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
pub(super) fn statements(script: &str) -> Vec<String> {
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
pub(super) fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}
