//! Why a run goes slower than it could.

use std::fmt;

/// Why it goes slower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reason {
    /// Active parts in a partition of what is written to.
    Parts,
    /// Merges that run.
    Merges,
    /// Seconds by which a replica is behind.
    ReplicaDelay,
    /// What a replica has still to do.
    ReplicaQueue,
    /// Memory of the server.
    ServerMemory,
    /// Queries of others that run.
    Queries,
    /// Those of them that take long.
    SlowQueries,
    /// Our own inserts take longer than at first.
    InsertTime,
    /// The limit of rows.
    RowsPerSecond,
    /// The limit of bytes.
    BytesPerSecond,
    /// The operator has paused it.
    Paused,
    /// It is not the time of day for it.
    Window,
}

impl Reason {
    /// All of them.
    #[cfg(test)]
    pub(super) const ALL: [Self; 12] = [
        Self::Parts,
        Self::Merges,
        Self::ReplicaDelay,
        Self::ReplicaQueue,
        Self::ServerMemory,
        Self::Queries,
        Self::SlowQueries,
        Self::InsertTime,
        Self::RowsPerSecond,
        Self::BytesPerSecond,
        Self::Paused,
        Self::Window,
    ];

    /// Its name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Reason::Parts => "parts",
            Reason::Merges => "merges",
            Reason::ReplicaDelay => "replica_delay",
            Reason::ReplicaQueue => "replica_queue",
            Reason::ServerMemory => "server_memory",
            Reason::Queries => "queries",
            Reason::SlowQueries => "slow_queries",
            Reason::InsertTime => "insert_time",
            Reason::RowsPerSecond => "rows_per_second",
            Reason::BytesPerSecond => "bytes_per_second",
            Reason::Paused => "paused",
            Reason::Window => "window",
        }
    }

    /// The flag that sets its limit.
    pub(crate) fn flag(self) -> &'static str {
        match self {
            Reason::Parts => "--max-parts",
            Reason::Merges => "--max-merges",
            Reason::ReplicaDelay => "--max-replica-delay",
            Reason::ReplicaQueue => "--max-replica-queue",
            Reason::ServerMemory => "--max-server-memory",
            Reason::Queries => "--max-queries",
            Reason::SlowQueries => "--max-slow-queries",
            Reason::InsertTime => "--max-insert-slowdown",
            Reason::RowsPerSecond => "--max-rows-per-second",
            Reason::BytesPerSecond => "--max-bytes-per-second",
            Reason::Paused => "pause",
            Reason::Window => "--window",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Parts => "active parts in a partition",
            Reason::Merges => "merges that run",
            Reason::ReplicaDelay => "seconds that a replica is behind",
            Reason::ReplicaQueue => "entries in the queue of a replica",
            Reason::ServerMemory => "percent of the server's memory",
            Reason::Queries => "queries of others",
            Reason::SlowQueries => "queries of others that have run for 10 s",
            Reason::InsertTime => "times as long as at first that inserts take",
            Reason::RowsPerSecond => "rows per second",
            Reason::BytesPerSecond => "bytes per second",
            Reason::Paused => "paused",
            Reason::Window => "outside of the window",
        })
    }
}
