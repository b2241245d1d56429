//! From the command line to the command, and from its end to the exit code.

use std::io::Write;
use std::process::ExitCode;

use super::{each_partition, run, status};
use crate::cli::Environment;
use crate::cli::arguments::{Arguments, Command, RepairArguments, RunArguments, SubjectArguments};
use crate::cli::options::Request;
use crate::error::Error;
use crate::memory::open_files;
use crate::verify::Verdict;
use crate::{plan, repair, verify};
use clap::Parser;

/// Carries out what the command line says, and gives the exit code.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match open_files::raise_limit().and_then(|()| carry_out(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may read it any more.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn carry_out(arguments: Arguments) -> Result<(), Error> {
    let environment = Environment::read()?;
    let subject = |subject: SubjectArguments| {
        let arguments = RunArguments {
            subject,
            ..RunArguments::default()
        };
        Request::new(arguments, &environment)
    };
    match arguments.command {
        None => block_on(run::run(Request::new(arguments.run, &environment)?)),
        Some(Command::Verify(arguments)) => {
            let prove = async |options| match verify::run(options).await? {
                Verdict::Equal => Ok(()),
                Verdict::Different(sentence) => Err(Error::Failed(sentence)),
            };
            block_on(each_partition::each(subject(arguments.subject)?, prove))
        }
        Some(Command::Repair(arguments)) => {
            let optimize = arguments.optimize;
            let request = Request::new(of_repair(arguments), &environment)?;
            let mend = async |options| repair::run(options, optimize).await;
            block_on(each_partition::each(request, mend))
        }
        Some(Command::Plan(arguments)) => {
            let request = Request::new(arguments.run, &environment)?;
            if arguments.json && request.selection.single().is_none() {
                return Err(Error::Configuration(
                    "--json goes with one month that is named: for several, name a file with --report"
                        .to_owned(),
                ));
            }
            let foresee = async |options| plan::run(options, arguments.json).await.map(drop);
            block_on(each_partition::each(request, foresee))
        }
        Some(Command::Status(arguments)) => {
            let directory = environment.state_dir(arguments.state_dir);
            status::run(&directory, arguments.json)
        }
    }
}

/// What a repair has in common with a run.
fn of_repair(arguments: RepairArguments) -> RunArguments {
    RunArguments {
        subject: arguments.subject,
        dry_run: arguments.dry_run,
        resume: arguments.resume,
        state_dir: arguments.state_dir,
        memory_limit: arguments.memory_limit,
        concurrency: arguments.concurrency,
        batch_size: arguments.batch_size,
        ..RunArguments::default()
    }
}

fn block_on<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::failed("the program cannot start its threads", error))?;
    runtime.block_on(work)
}
