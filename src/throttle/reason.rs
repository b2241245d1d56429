//! Reasons for throttling.

use std::fmt;

/// Why a run is throttled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reason {
    /// Active parts in a partition of a target table.
    Parts,
    /// Running merges.
    Merges,
    /// Replication delay.
    ReplicaDelay,
    /// Replication queue.
    ReplicaQueue,
    /// Server memory.
    ServerMemory,
    /// Queries by others.
    Queries,
    /// Long-running queries by others.
    SlowQueries,
    /// Inserts take longer than at first.
    InsertTime,
    /// The limit on rows.
    RowsPerSecond,
    /// The limit on bytes.
    BytesPerSecond,
    /// Paused by the operator.
    Paused,
    /// Outside the time window.
    Window,
}

impl Reason {
    /// All reasons.
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
            Reason::Merges => "running merges",
            Reason::ReplicaDelay => "seconds of replication delay",
            Reason::ReplicaQueue => "entries in the replication queue",
            Reason::ServerMemory => "percent of server memory in use",
            Reason::Queries => "queries by others",
            Reason::SlowQueries => "queries by others running for 10 s or more",
            Reason::InsertTime => "insert time as a multiple of the initial one",
            Reason::RowsPerSecond => "rows per second",
            Reason::BytesPerSecond => "bytes per second",
            Reason::Paused => "paused",
            Reason::Window => "outside the window",
        })
    }
}
