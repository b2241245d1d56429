//! `events-backfill`: see the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

/// For RocksDB too. With glibc's allocator the many small blocks that RocksDB caches,
/// and frees from other threads, leave holes: 774 MiB resident where 440 MiB were meant to be.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    events_backfill::main()
}
