//! Dispatches the command line to its command, and turns the outcome into an exit code.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use super::each_partition::Looked;
use super::{all_shards, control, each_partition, generate, report, run, status};
use crate::cli::Environment;
use crate::cli::arguments::{
    Arguments, Command, RepairArguments, RunArguments, SubjectArguments, VerifyArguments,
};
use crate::cli::options::{Options, Request, cluster_of, log_format, parse_wishes, shard_of};
use crate::cli::usage;
use crate::error::Error;
use crate::memory::open_files;
use crate::plan::{Forecast, OneOfSeveral, Totals};
use crate::progress::log::{self, Level};
use crate::session::Session;
use crate::{plan, repair, verify};

/// The niceness that yields to all other processes.
const MOST_NICE: i32 = 19;

/// Executes the command line and returns the exit code.
pub fn main() -> ExitCode {
    match usage::parse().and_then(start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::line(Level::Error, &error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn start(arguments: Arguments) -> Result<(), Error> {
    open_files::raise_limit()?;
    let environment = Environment::read()?;
    dispatch(arguments, &environment).map_err(|error| {
        let hint = error.setting().and_then(|name| environment.hint(name));
        match hint {
            Some(hint) => error.and(hint),
            None => error,
        }
    })
}

fn dispatch(arguments: Arguments, environment: &Environment) -> Result<(), Error> {
    if arguments
        .command
        .as_ref()
        .is_some_and(Command::is_about_runs)
    {
        log::choose(log_format(&SubjectArguments::default(), environment)?);
    }
    if let Some(subject) = arguments.subject()
        && let Some(cluster) = cluster_of(subject, environment)?
    {
        return on_all_shards(arguments, environment, &cluster);
    }
    match arguments.command {
        None => {
            let arguments = RunArguments {
                telling: arguments.telling,
                ..arguments.run
            };
            block_on(run::run(of_share(arguments, environment)?))
        }
        Some(Command::Verify(arguments)) => {
            let request = of_run(of_verify(arguments), environment)?;
            let prove =
                async |session: &Session, options| verify::run(session, options).await.map(looked);
            block_on(each_partition::each(request, Some("are equal"), prove))
        }
        Some(Command::Repair(arguments)) => {
            let optimize = arguments.optimize;
            let request = of_run(of_repair(arguments), environment)?;
            let mend = async |session: &Session, options: Options| {
                let _window = session.keep_window(&options);
                repair::run(session, options, optimize).await.map(looked)
            };
            block_on(each_partition::each(request, None, mend))
        }
        Some(Command::Plan(arguments)) => {
            let request = of_share(arguments.run, environment)?;
            if arguments.json && request.selection.single().is_none() {
                return Err(Error::configuration(
                    "--json takes a single named month: for several, name a file with --report",
                ));
            }
            let is_quiet = request.shared().quiet;
            let is_single = request.selection.single().is_some();
            let totals = RefCell::new(Totals::default());
            let foresee = async |session: &Session, options| {
                let forecast = plan::run(session, options).await?;
                totals.borrow_mut().add(&forecast);
                let text = match (arguments.json, is_single) {
                    (true, _) => as_json(&forecast)?,
                    (false, true) => forecast.to_string(),
                    (false, false) => OneOfSeveral(&forecast).to_string(),
                };
                Ok(Looked {
                    text,
                    report: forecast,
                    outcome: Ok(()),
                })
            };
            let outcome = block_on(each_partition::each(request, None, foresee));
            let totals = totals.into_inner();
            if !is_single && !totals.are_empty() && !is_quiet {
                // A closed standard output is no reason to fail.
                let _ = writeln!(std::io::stdout().lock(), "{totals}");
            }
            outcome
        }
        Some(Command::Report(arguments)) => {
            let directories = environment.state_dirs(arguments.state_dir);
            report::run(&directories, &arguments.html)
        }
        Some(Command::Pause(arguments)) => {
            let directory = environment.state_dir(arguments.state_dir);
            control::run(&directory, &control::Command::Pause)
        }
        Some(Command::Continue(arguments)) => {
            let directory = environment.state_dir(arguments.state_dir);
            control::run(&directory, &control::Command::Continue)
        }
        Some(Command::Set(arguments)) => {
            let wishes = parse_wishes(&arguments.changes)?;
            let directory = environment.state_dir(arguments.runs.state_dir);
            control::run(&directory, &control::Command::Set(wishes))
        }
        Some(Command::Status(arguments)) => {
            let directories = environment.state_dirs(arguments.state_dir);
            status::run(&directories, arguments.json)
        }
        Some(Command::Generate(arguments)) => generate::run(&arguments.directory),
    }
}

/// Executes the command line once per shard of a cluster, in a process each.
fn on_all_shards(
    arguments: Arguments,
    environment: &Environment,
    cluster: &str,
) -> Result<(), Error> {
    let request = match arguments.command {
        Some(Command::Verify(arguments)) => of_run(of_verify(arguments), environment),
        Some(Command::Repair(arguments)) => of_run(of_repair(arguments), environment),
        Some(Command::Plan(arguments)) => of_share(arguments.run, environment),
        _ => {
            let arguments = RunArguments {
                telling: arguments.telling,
                ..arguments.run
            };
            of_share(arguments, environment)
        }
    };
    let given: Vec<OsString> = std::env::args_os().skip(1).collect();
    block_on(all_shards::run(&request?, cluster, &given))
}

/// The request, with log format and niceness of this process set accordingly.
fn of_run(arguments: RunArguments, environment: &Environment) -> Result<Request, Error> {
    log::choose(log_format(&arguments.subject, environment)?);
    let request = Request::new(arguments, environment)?;
    give_way(request.shared());
    Ok(request)
}

/// The same, limited to this process's shard. Verify and repair always take the whole month instead.
fn of_share(arguments: RunArguments, environment: &Environment) -> Result<Request, Error> {
    let shard = shard_of(arguments.shard.as_deref(), environment)?;
    of_run(arguments, environment)?.for_shard(shard)
}

/// Pairs a report with its text.
fn looked<R: Display>((report, outcome): (R, Result<(), Error>)) -> Looked<R> {
    Looked {
        text: format!("\n{report}"),
        report,
        outcome,
    }
}

fn as_json(forecast: &Forecast) -> Result<String, Error> {
    serde_json::to_string_pretty(forecast)
        .map_err(|error| Error::caused("cannot write the plan as JSON", error))
}

/// The options that verify shares with a run.
fn of_verify(arguments: VerifyArguments) -> RunArguments {
    RunArguments {
        subject: arguments.subject,
        state_dir: arguments.state_dir,
        ..RunArguments::default()
    }
}

/// The options that repair shares with a run.
fn of_repair(arguments: RepairArguments) -> RunArguments {
    RunArguments {
        subject: arguments.subject,
        dry_run: arguments.dry_run,
        resume: arguments.resume,
        state_dir: arguments.state_dir,
        memory_limit: arguments.memory_limit,
        concurrency: arguments.concurrency,
        batch_size: arguments.batch_size,
        part_bytes: arguments.part_bytes,
        throttle: arguments.throttle,
        ..RunArguments::default()
    }
}

/// Lets other processes on the machine go first, unless told not to. Must run before threads start:
/// niceness is per thread, and new threads inherit it.
fn give_way(options: &Options) {
    if options.throttle.thresholds.is_some() {
        // A refusal does no harm.
        let _ = rustix::process::nice(MOST_NICE);
    }
}

fn block_on<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::caused("cannot start the program's threads", error))?;
    runtime.block_on(work)
}
