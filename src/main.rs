//! The `events-backfill` program. Everything is in the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Also used by RocksDB, which caches many small blocks and frees them from other threads. glibc's
/// allocator fragmented under that: 774 MiB resident instead of 440 MiB.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    events_backfill::main()
}
