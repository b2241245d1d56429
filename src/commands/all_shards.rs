//! `--all-shards`: starts one process per shard of a cluster, each with the local tables of its shard.
//!
//! A shard's rows are read, looked up and written on that shard, so the processes share nothing. Each
//! runs as if it had been started by hand with the addresses of that shard's replicas.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use clickhouse::Row;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use url::Url;

use crate::cli::options::{Choice, Options, Request, is_loopback};
use crate::cli::selection::in_words;
use crate::clickhouse::{Connection, ConnectionOptions, RequestError, quoting};
use crate::error::Error;
use crate::inspect::{months, placement};
use crate::partition::Partition;
use crate::progress::log;
use crate::session::Session;
use crate::state::directory::OF_CLUSTER;

/// A row of `system.clusters`.
#[derive(Row, Deserialize)]
struct Replica {
    shard: u32,
    host: String,
    is_local: u8,
}

/// A shard of the cluster.
struct Shard {
    number: u32,
    /// Connection to its replicas.
    connection: Connection,
    /// The months to process there.
    months: Vec<Partition>,
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
    let refused = ["--json", "--metrics-listen"].into_iter().find(|flag| {
        let is_given = arguments.iter().any(|argument| argument == flag);
        is_given || (*flag == "--metrics-listen" && options.metrics_listen.is_some())
    });
    if let Some(flag) = refused {
        return Err(Error::configuration(format!(
            "{flag} cannot be combined with --all-shards, which starts a process for each shard"
        )));
    }
    let session = Session::begin(options)?;
    let shards = find(&session, options, cluster).await?;
    let shards = session
        .unless_interrupted(look_at(&session, request, shards))
        .await?;
    session.display.note(format_args!(
        "cluster {cluster}: starting a process for each of {} shards, with up to {} of memory each",
        shards.len(),
        options.memory_limit
    ));
    let commands: Vec<_> = shards
        .iter()
        .map(|shard| Ok((shard.number, command(options, shard, arguments)?)))
        .collect::<Result<_, Error>>()?;
    let (mut running, mut processes) = (JoinSet::new(), BTreeMap::new());
    for (number, mut command) in commands {
        // On disk, however much it prints.
        let printed = tempfile::tempfile();
        let stdout = printed.and_then(|printed| Ok((printed.try_clone()?, printed)));
        let spawned =
            stdout.and_then(|(stdout, printed)| Ok((command.stdout(stdout).spawn()?, printed)));
        match spawned {
            Ok((child, printed)) => {
                let process = child.id().and_then(|id| i32::try_from(id).ok());
                let process = process.and_then(Pid::from_raw);
                processes.extend(process.map(|process| (number, process)));
                running.spawn(follow(number, child, printed));
            }
            // The others continue: each is a run of its own.
            Err(error) => {
                let text = format!("error: cannot start the process: {error}");
                log::of_process("shard", number, text.as_bytes());
                running.spawn(std::future::ready(Ended::not_begun(number)));
            }
        }
    }
    let ended = wait(&session, running, processes).await;
    conclude(&session, &ended)
}

/// The shards of a cluster, in order.
async fn find(session: &Session, options: &Options, cluster: &str) -> Result<Vec<Shard>, Error> {
    let connection = session.connection.with_retries(&session.retries(options));
    let ask = async {
        connection.settle_settings().await?;
        let replicas = format!(
            "SELECT toUInt32(shard_num) AS shard, host_name AS host, toUInt8(is_local) AS is_local \
             FROM system.clusters WHERE cluster = {} ORDER BY shard_num, replica_num",
            quoting::string(cluster)
        );
        connection.rows::<Replica>(&replicas).await
    };
    let answered = async {
        ask.await.map_err(|error| {
            Error::configuration(format!(
                "cannot read the shards of cluster '{cluster}' from ClickHouse at {}: {error}",
                connection.address()
            ))
        })
    };
    let replicas = session.unless_interrupted(answered).await?;
    if replicas.is_empty() {
        return Err(Error::configuration(format!(
            "ClickHouse at {} has no cluster '{cluster}': name one from system.clusters with --cluster or \
             CLICKHOUSE_CLUSTER_NAME",
            connection.address()
        )));
    }
    let asked = connection.address_in_use();
    let mut shards: BTreeMap<u32, Vec<Url>> = BTreeMap::new();
    for replica in replicas {
        let url = address(&asked, &replica)?;
        shards.entry(replica.shard).or_default().push(url);
    }
    let shards = shards.into_iter().map(|(number, urls)| {
        let connection = ConnectionOptions {
            urls,
            ..options.connection.clone()
        };
        let connection = Connection::new(connection).map_err(Error::configuration)?;
        Ok(Shard {
            number,
            connection: connection.with_retries(&session.retries(options)),
            months: Vec::new(),
        })
    });
    shards.collect()
}

/// The HTTP address of a replica, with the scheme and port of the server at `asked`: `system.clusters`
/// has only native ports.
fn address(asked: &str, replica: &Replica) -> Result<Url, Error> {
    let host = &replica.host;
    let wrong = |why: &str| {
        Error::configuration(format!(
            "the cluster has a server '{host}', {why}: start one run per shard yourself, with its \
             addresses in CLICKHOUSE_URL, --local-tables and its own --state-dir"
        ))
    };
    let not_a_host = "which is not a host name";
    let mut url: Url = asked.parse().map_err(|_| wrong(not_a_host))?;
    // Its host name may be localhost, which would be this machine here.
    if replica.is_local != 0 {
        return Ok(url);
    }
    let asks_this_machine = is_loopback(&url);
    let host = match host.contains(':') {
        true => format!("[{host}]"),
        false => host.clone(),
    };
    url.set_host(Some(&host)).map_err(|_| wrong(not_a_host))?;
    match is_loopback(&url) && !asks_this_machine {
        true => Err(wrong("which from here means this machine")),
        false => Ok(url),
    }
}

/// Checks by a sample that traces and the rows that name them share a shard, and assigns each shard those
/// of the requested months that it has. Leaves out shards without any.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) if a shard cannot be queried, traces lie on another shard,
/// or no shard has rows of the months.
async fn look_at(
    session: &Session,
    request: &Request,
    mut shards: Vec<Shard>,
) -> Result<Vec<Shard>, Error> {
    let database = &request.shared().database;
    // What the shard's process will ask as well: it would fail for a month that has nothing to do.
    let of_shard = Options {
        local_tables: true,
        ..request.shared().clone()
    };
    let retries = session.retries(&of_shard);
    let mut there_are = BTreeSet::new();
    for shard in &mut shards {
        let months = months(&shard.connection, &of_shard, &retries).await;
        let months =
            months.map_err(|error| error.during(format_args!("shard {}", shard.number)))?;
        shard.months = months.rows.into_keys().collect();
        there_are.extend(&shard.months);
    }
    let selected = request.selection.resolve(&there_are).map_err(|missing| {
        Error::configuration(format!(
            "no shard has rows for {} in database {database}: check the month, and CLICKHOUSE_DB",
            in_words(&missing)
        ))
    })?;
    for shard in &mut shards {
        shard
            .months
            .retain(|month| selected.partitions.contains(month));
        if shard.months.is_empty() {
            session.display.note(format_args!(
                "shard {} has no rows for these months: skipping it",
                shard.number
            ));
        }
    }
    require_placement(request.shared(), &shards).await?;
    shards.retain(|shard| !shard.months.is_empty());
    match shards.is_empty() {
        false => Ok(shards),
        true => Err(Error::configuration(format!(
            "no shard has rows for the months asked for in database {database}: check the months, and \
             CLICKHOUSE_DB"
        ))),
    }
}

fn unanswered(shard: &Shard, error: &RequestError) -> Error {
    Error::configuration(format!(
        "cannot query shard {} at {}: {error}",
        shard.number,
        shard.connection.address()
    ))
}

/// Checks by a sample that the traces that a shard's rows name lie on that shard.
async fn require_placement(options: &Options, shards: &[Shard]) -> Result<(), Error> {
    let database = &options.database;
    let subject = &options.subject;
    let reads_items = subject.asked.experiments != Choice::Off || subject.exclude_dataset_items;
    let naming = placement::NAMING.into_iter();
    let naming = naming.filter(|table| reads_items || *table != placement::ITEMS);
    for table in naming {
        for shard in shards {
            let sample = placement::sample(&shard.connection, database, table).await;
            let missing = sample.map_err(|error| unanswered(shard, &error))?;
            for other in shards {
                if other.number == shard.number || missing.is_empty() {
                    continue;
                }
                let there = placement::count(&other.connection, database, &missing).await;
                let there = there.map_err(|error| unanswered(other, &error))?;
                if there > 0 {
                    return Err(Error::configuration(format!(
                        "{table} on shard {} names traces that lie on shard {} ({there} of {} sampled), \
                         where its run would not find them: shard traces, observations and {} by the \
                         same key, for example project_id",
                        shard.number,
                        other.number,
                        placement::SAMPLE,
                        placement::ITEMS,
                    )));
                }
            }
        }
    }
    Ok(())
}

/// The command that starts this program for one shard.
fn command(options: &Options, shard: &Shard, arguments: &[OsString]) -> Result<Command, Error> {
    let program = std::env::current_exe()
        .map_err(|error| Error::caused("cannot find the path of this program", error))?;
    let months: Vec<String> = shard.months.iter().map(Partition::to_string).collect();
    let mut command = Command::new(program);
    command
        .args(arguments_for(shard.number, arguments))
        .arg("--local-tables")
        .arg("--partition")
        .arg(months.join(","))
        .arg("--state-dir")
        .arg(of_shard_dir(&options.state_dir, shard.number))
        .env("CLICKHOUSE_URL", shard.connection.address())
        .env("ALL_SHARDS", "false")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        // Keeps the terminal's signals from the child: this process passes them on, once.
        .process_group(0);
    Ok(command)
}

fn of_shard_dir(root: &Path, number: u32) -> PathBuf {
    root.join(format!("{OF_CLUSTER}{number}"))
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
            "--all-shards" | "--local-tables" | "--all-partitions" => {}
            "--state-dir" | "--cluster" | "--partition" if attached.is_some() => {}
            "--state-dir" | "--cluster" | "--partition" => drop(arguments.next()),
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
    /// Its standard output; `None` if it did not start.
    printed: Option<File>,
}

impl Ended {
    fn not_begun(number: u32) -> Self {
        Self {
            number,
            code: None,
            printed: None,
        }
    }
}

/// Forwards a process's standard error line by line until it ends.
async fn follow(number: u32, mut child: Child, printed: File) -> Ended {
    if let Some(stderr) = child.stderr.take() {
        let mut lines = BufReader::new(stderr).split(b'\n');
        while let Ok(Some(line)) = lines.next_segment().await {
            log::of_process("shard", number, &line);
        }
    }
    let code = child.wait().await.ok().and_then(|status| status.code());
    Ended {
        number,
        code,
        printed: Some(printed),
    }
}

/// Prints what a shard's process printed, if it did.
fn print(ended: &Ended) -> std::io::Result<()> {
    let Some(mut printed) = ended.printed.as_ref() else {
        return Ok(());
    };
    if printed.metadata()?.len() == 0 {
        return Ok(());
    }
    // The process wrote through the same open file, so it stands at the end.
    printed.rewind()?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "\nShard {}", ended.number)?;
    std::io::copy(&mut printed, &mut out)?;
    Ok(())
}

/// Waits for all, and passes a signal on to them.
async fn wait(
    session: &Session,
    mut running: JoinSet<Ended>,
    mut processes: BTreeMap<u32, Pid>,
) -> Vec<Ended> {
    let mut ended = Vec::new();
    let mut is_told = false;
    while !running.is_empty() {
        tokio::select! {
            Some(one) = running.join_next() => {
                if let Ok(one) = one {
                    // The system may give its ID to another process.
                    processes.remove(&one.number);
                    ended.push(one);
                }
            }
            signal = session.shutdown.requested(), if !is_told => {
                is_told = true;
                let signal = Signal::from_named_raw(i32::from(signal)).unwrap_or(Signal::TERM);
                for &process in processes.values() {
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
    for one in ended {
        // The work is done even if standard output is closed.
        let _ = print(one);
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
        "failed on {} {}: see its messages above; --resume-or-start continues a run on all shards",
        if all.len() == 1 { "shard" } else { "shards" },
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
            ("--all-shards --partition 202406 --resume", "--resume"),
            (
                "verify --partition=202406 --all-shards --quiet",
                "verify --quiet",
            ),
            ("--all-partitions --all-shards --dry-run", "--dry-run"),
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
