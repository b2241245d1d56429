//! `--all-shards`: starts one process per shard of a cluster, each with the local tables of its shard.
//!
//! A shard's rows are read, looked up and written on that shard, so the processes share nothing. Each
//! runs as if it had been started by hand with the addresses of that shard's replicas.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use clickhouse::Row;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use url::Url;

use crate::cli::options::{Options, Request};
use crate::clickhouse::{Connection, ConnectionOptions, quoting};
use crate::error::Error;
use crate::inspect::placement;
use crate::progress::log;
use crate::session::Session;

/// A row of `system.clusters`.
#[derive(Row, Deserialize)]
struct Replica {
    shard: u32,
    host: String,
}

/// A shard of the cluster.
struct Shard {
    number: u32,
    /// HTTP addresses of its replicas.
    urls: Vec<Url>,
}

/// Executes this process's command line on every shard of a cluster and prints the results.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) if the cluster does not exist, traces and observations
/// lie on different shards, or all failed processes exit with 2; [`Kind::Failed`](crate::error::Kind)
/// if others fail; [`Kind::Interrupted`](crate::error::Kind) after a signal.
pub(super) async fn run(
    request: &Request,
    cluster: &str,
    arguments: &[OsString],
) -> Result<(), Error> {
    let options = request.shared();
    if options.metrics_listen.is_some() {
        return Err(Error::configuration(
            "--metrics-listen cannot be combined with --all-shards: its processes cannot share an address",
        ));
    }
    let session = Session::begin(options)?;
    let shards = find(&session, options, cluster).await?;
    session
        .unless_interrupted(require_placement(options, &shards))
        .await?;
    session.display.note(format_args!(
        "cluster {cluster} has {} shards: starting a process for each, with up to {} of memory each",
        shards.len(),
        options.memory_limit
    ));
    let commands: Vec<_> = shards
        .iter()
        .map(|shard| Ok((shard.number, command(options, shard, arguments)?)))
        .collect::<Result<_, Error>>()?;
    let (mut running, mut processes) = (JoinSet::new(), Vec::new());
    for (number, mut command) in commands {
        match command.spawn() {
            Ok(child) => {
                let process = child.id().and_then(|id| i32::try_from(id).ok());
                processes.extend(process.and_then(Pid::from_raw));
                running.spawn(follow(number, child));
            }
            // The others continue: each is a run of its own.
            Err(error) => {
                let text = format!("error: cannot start the process: {error}");
                log::of_process("shard", number, text.as_bytes());
                running.spawn(std::future::ready(Ended::not_begun(number)));
            }
        }
    }
    let ended = wait(&session, running, &processes).await;
    conclude(&session, &ended)
}

/// The shards of a cluster, in order.
async fn find(session: &Session, options: &Options, cluster: &str) -> Result<Vec<Shard>, Error> {
    let connection = session.connection.with_retries(&session.retries(options));
    let ask = async {
        let asked = connection.settle_settings().await;
        let replicas = match asked {
            Ok(()) => connection
                .rows::<Replica>(&format!(
                    "SELECT toUInt32(shard_num) AS shard, host_name AS host FROM system.clusters \
                     WHERE cluster = {} ORDER BY shard_num, replica_num",
                    quoting::string(cluster)
                ))
                .await,
            Err(error) => Err(error),
        };
        replicas.map_err(|error| {
            Error::configuration(format!(
                "cannot read the shards of cluster '{cluster}' from ClickHouse at {}: {error}",
                connection.address()
            ))
        })
    };
    let replicas = session.unless_interrupted(ask).await?;
    if replicas.is_empty() {
        return Err(Error::configuration(format!(
            "ClickHouse at {} has no cluster '{cluster}': name one from system.clusters with --cluster or \
             CLICKHOUSE_CLUSTER_NAME",
            connection.address()
        )));
    }
    let mut shards: BTreeMap<u32, Vec<Url>> = BTreeMap::new();
    for replica in replicas {
        let url = address(&options.connection, &replica.host)?;
        shards.entry(replica.shard).or_default().push(url);
    }
    let shards = shards.into_iter();
    Ok(shards
        .map(|(number, urls)| Shard { number, urls })
        .collect())
}

/// The HTTP address of a replica, with the scheme and port of the first configured server:
/// `system.clusters` has only native ports.
fn address(connection: &ConnectionOptions, host: &str) -> Result<Url, Error> {
    let wrong = || {
        Error::configuration(format!(
            "the cluster has a server '{host}', which is not a host name: start one run per shard, with its \
             addresses in CLICKHOUSE_URL, --local-tables and its own --state-dir"
        ))
    };
    let mut url = connection.urls.first().cloned().ok_or_else(wrong)?;
    let host = match host.contains(':') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    };
    url.set_host(Some(&host)).map_err(|_| wrong())?;
    Ok(url)
}

/// Checks by a sample that the traces of a shard's observations lie on that shard.
async fn require_placement(options: &Options, shards: &[Shard]) -> Result<(), Error> {
    let connection = |shard: &Shard| {
        let connection = ConnectionOptions {
            urls: shard.urls.clone(),
            ..options.connection.clone()
        };
        Connection::new(connection).map_err(Error::configuration)
    };
    let connections: Vec<Connection> = shards.iter().map(connection).collect::<Result<_, _>>()?;
    for (shard, own) in shards.iter().zip(&connections) {
        let failed = |error| {
            Error::configuration(format!(
                "cannot query the traces on shard {}: {error}; its servers are {}",
                shard.number,
                own.address()
            ))
        };
        let sample = placement::sample(own, &options.database).await;
        let missing = sample.map_err(failed)?;
        for (other, connection) in shards.iter().zip(&connections) {
            if other.number == shard.number || missing.is_empty() {
                continue;
            }
            let there = placement::count(connection, &options.database, &missing).await;
            let there = there.map_err(failed)?;
            if there > 0 {
                return Err(Error::configuration(format!(
                    "shard {} has observations whose traces lie on shard {} ({there} of {} sampled traces): \
                     separate runs would not find them, and would write events without trace \
                     attributes; shard traces and observations by the same key, for example project_id",
                    shard.number,
                    other.number,
                    placement::SAMPLE
                )));
            }
        }
    }
    Ok(())
}

/// The command that starts this program for one shard.
fn command(options: &Options, shard: &Shard, arguments: &[OsString]) -> Result<Command, Error> {
    let program = std::env::current_exe()
        .map_err(|error| Error::caused("cannot find the path of this program", error))?;
    let urls: Vec<&str> = shard.urls.iter().map(Url::as_str).collect();
    let mut command = Command::new(program);
    command
        .args(arguments_for(shard.number, arguments))
        .arg("--local-tables")
        .arg("--state-dir")
        .arg(of_shard_dir(&options.state_dir, shard.number))
        .env("CLICKHOUSE_URL", urls.join(","))
        .env("ALL_SHARDS", "false")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Keeps the terminal's signals from the child: this process passes them on, once.
        .process_group(0);
    Ok(command)
}

fn of_shard_dir(root: &Path, number: u32) -> PathBuf {
    root.join(format!("shard-{number}"))
}

/// The arguments, with each shard's own files instead of shared ones.
fn arguments_for(number: u32, arguments: &[OsString]) -> Vec<OsString> {
    let mut own = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let text = argument.to_str().unwrap_or_default();
        let (flag, attached) = match text.split_once('=') {
            Some((flag, value)) => (flag, Some(OsStr::new(value).to_owned())),
            None => (text, None),
        };
        match flag {
            "--all-shards" | "--local-tables" => {}
            "--state-dir" | "--cluster" if attached.is_some() => {}
            "--state-dir" | "--cluster" => drop(arguments.next()),
            "--report" | "--html" => {
                let value = attached.or_else(|| arguments.next().cloned());
                own.push(flag.into());
                own.extend(value.map(|file| of_shard_file(Path::new(&file), number).into()));
            }
            _ => own.push(argument.clone()),
        }
    }
    own
}

/// `summary.json` becomes `summary.shard-2.json`.
fn of_shard_file(file: &Path, number: u32) -> PathBuf {
    let mut name = file.file_stem().unwrap_or_default().to_owned();
    name.push(format!(".shard-{number}"));
    if let Some(extension) = file.extension() {
        name.push(".");
        name.push(extension);
    }
    file.with_file_name(name)
}

/// A finished process of a shard.
struct Ended {
    number: u32,
    /// Exit code; `None` if it was killed or did not start.
    code: Option<i32>,
    stdout: Vec<u8>,
}

impl Ended {
    fn not_begun(number: u32) -> Self {
        Self {
            number,
            code: None,
            stdout: Vec::new(),
        }
    }
}

/// Forwards a process's standard error line by line until it ends, and collects its standard output.
async fn follow(number: u32, mut child: Child) -> Ended {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let printed = async {
        let mut printed = Vec::new();
        if let Some(mut stdout) = stdout {
            let _ = stdout.read_to_end(&mut printed).await;
        }
        printed
    };
    let said = async {
        let Some(stderr) = stderr else { return };
        let mut lines = BufReader::new(stderr).split(b'\n');
        while let Ok(Some(line)) = lines.next_segment().await {
            log::of_process("shard", number, &line);
        }
    };
    let (stdout, ()) = tokio::join!(printed, said);
    let code = child.wait().await.ok().and_then(|status| status.code());
    Ended {
        number,
        code,
        stdout,
    }
}

/// Waits for all processes, and passes the first signal on to them.
async fn wait(session: &Session, mut running: JoinSet<Ended>, processes: &[Pid]) -> Vec<Ended> {
    let mut ended = Vec::new();
    let mut is_told = false;
    while !running.is_empty() {
        tokio::select! {
            Some(one) = running.join_next() => ended.extend(one.ok()),
            signal = session.shutdown.requested(), if !is_told => {
                is_told = true;
                let signal = Signal::from_named_raw(i32::from(signal)).unwrap_or(Signal::TERM);
                for &process in processes {
                    // It fails if the process has ended already.
                    let _ = kill_process(process, signal);
                }
            }
        }
    }
    ended.sort_by_key(|one| one.number);
    ended
}

/// Prints the processes' output in the order of the shards, and reports which failed.
fn conclude(session: &Session, ended: &[Ended]) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    for one in ended.iter().filter(|one| !one.stdout.is_empty()) {
        // The work is done even if standard output is closed.
        let _ = writeln!(out, "\nShard {}", one.number);
        let _ = out.write_all(&one.stdout);
    }
    if let Some(signal) = session.shutdown.signal() {
        return Err(Error::interrupted(signal));
    }
    let failed = |what: &dyn Fn(Option<i32>) -> bool| -> Vec<String> {
        let failed = ended.iter().filter(|one| what(one.code));
        failed.map(|one| one.number.to_string()).collect()
    };
    let all = failed(&|code| code != Some(0));
    if all.is_empty() {
        return Ok(());
    }
    let what = format!(
        "shard {} failed: see its messages above; --resume continues all shards",
        all.join(", ")
    );
    // Exit code 2 tells a supervisor that a restart is useless.
    Err(match failed(&|code| code == Some(2)).len() == all.len() {
        true => Error::configuration(what),
        false => Error::failed(what),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_gets_what_was_said_but_for_what_must_be_its_own() {
        let given = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        for (all, own) in [
            ("--all-shards --partition 202406", "--partition 202406"),
            (
                "verify --partition=202406 --all-shards --quiet",
                "verify --partition=202406 --quiet",
            ),
            ("--state-dir /a --cluster b --resume", "--resume"),
            ("--state-dir=/a --cluster=b --resume", "--resume"),
            (
                "--report /a/b.json --html c",
                "--report /a/b.shard-2.json --html c.shard-2",
            ),
            ("--report=/a/b.c.json", "--report /a/b.c.shard-2.json"),
        ] {
            assert_eq!(arguments_for(2, &given(all)), given(own), "{all}");
        }
    }
}
