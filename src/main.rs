//! `events-backfill`: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use events_backfill::cli::Arguments;
use events_backfill::error::Error;
use events_backfill::job;
use events_backfill::options::{Environment, Options};

/// For RocksDB too. With glibc's allocator the many small blocks that RocksDB caches,
/// and frees from other threads, leave holes: 774 MiB resident where 440 MiB were meant to be.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Error> {
    let options = Options::new(arguments.run, &Environment::read()?)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::failed("the program cannot start its threads", error))?;
    runtime.block_on(job::run(options))
}
