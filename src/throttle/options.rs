//! The operator's speed settings.

use super::window::Window;

/// Speed limits for a run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ThrottleOptions {
    /// Server load thresholds. `None` disables watching the server.
    pub thresholds: Option<Thresholds>,
    /// Maximum events written per second.
    pub rows_per_second: Option<u64>,
    /// Maximum uncompressed bytes of events written per second.
    pub bytes_per_second: Option<u64>,
    /// The time window in which segments may start.
    pub window: Option<Window>,
}

/// Thresholds above which the server counts as overloaded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Thresholds {
    /// Active parts in one partition. Default: half the server's limit for delaying or rejecting
    /// inserts.
    pub parts: Option<u64>,
    /// Concurrent merges. Default: one more than the server's merge threads.
    pub merges: Option<u64>,
    /// Replication delay, in seconds.
    pub replica_delay: u64,
    /// Entries in a replica's queue.
    pub replica_queue: u64,
    /// Server memory in use, in percent.
    pub server_memory: u64,
    /// Concurrent queries by others. Default: four for each core that a query may use.
    pub queries: Option<u64>,
    /// Queries by others that have run for ten seconds.
    pub slow_queries: u64,
    /// Insert time per byte, as a multiple of its initial value.
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
