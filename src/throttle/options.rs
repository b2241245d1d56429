//! What the operator may set.

use super::window::Window;

/// How fast a run may go.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ThrottleOptions {
    /// What the server may show; none where it is not to be looked at.
    pub thresholds: Option<Thresholds>,
    /// Rows of events that may be written in a second.
    pub rows_per_second: Option<u64>,
    /// Their bytes, uncompressed.
    pub bytes_per_second: Option<u64>,
    /// When it may work.
    pub window: Option<Window>,
}

/// From where on the server shows that it has too much to do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Thresholds {
    /// Active parts in one partition; by default half of what inserts are delayed or refused from.
    pub parts: Option<u64>,
    /// Merges that run at once; by default one more than the server's pool has threads for.
    pub merges: Option<u64>,
    /// Seconds by which a replica is behind.
    pub replica_delay: u64,
    /// Entries in the queue of a replica.
    pub replica_queue: u64,
    /// Percent of the server's memory.
    pub server_memory: u64,
    /// Queries of others at once; by default four for each core that a query may use.
    pub queries: Option<u64>,
    /// Those of them that have run for ten seconds.
    pub slow_queries: u64,
    /// How many times as long as at first an insert may take.
    pub insert_slowdown: u64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            parts: None,
            merges: None,
            replica_delay: 60,
            replica_queue: 200,
            server_memory: 85,
            queries: None,
            slow_queries: 4,
            insert_slowdown: 5,
        }
    }
}
