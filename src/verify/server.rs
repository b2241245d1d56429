//! The server, as it is asked here: again where that may help, and with smaller
//! blocks where it lacks memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clickhouse::{RowOwned, RowRead};

use super::rows::Widths;
use super::scope::Share;
use crate::clickhouse::Connection;
use crate::clickhouse::retry::Retries;
use crate::error::Error;

/// How long a statement may take. It reads a batch on both sides, or the ids of
/// all traces.
const PATIENCE: Duration = Duration::from_secs(3_600);

/// Most rows in one block. More gains little.
const MOST_BLOCK_ROWS: u64 = 4_096;
/// Fewer rows in a block would take the server many times as long.
const FEWEST_BLOCK_ROWS: u64 = 16;
/// Bytes of the blocks of all parts of a partition together. `FINAL` holds one of
/// each, two or three times over, and does not heed a limit of their bytes.
const BLOCKS_BYTES: u64 = 100_000_000;
/// Blocks of so many bytes are not what a server lacks memory for.
const SMALL_BLOCKS_BYTES: u64 = 16_000_000;
/// If a share is one of so many, it is small.
const MANY_SHARES: u64 = 16;
/// By how much smaller blocks are tried where the server lacks memory.
const SMALLER: u64 = 4;

/// The server.
pub(super) struct Server {
    connection: Connection,
    retries: Retries,
    settings: Vec<(&'static str, String)>,
    /// Bytes of a row of each part together, in the table where they are most.
    row_bytes: u64,
    block_rows: AtomicU64,
}

impl Server {
    /// The server at the end of a connection. `partitions_are_apart` says that no
    /// two rows in different partitions are versions of each other.
    pub(super) fn new(
        connection: Connection,
        retries: Retries,
        partitions_are_apart: bool,
    ) -> Self {
        let mut settings = settings();
        settings.push((
            "do_not_merge_across_partitions_select_final",
            u8::from(partitions_are_apart).to_string(),
        ));
        Self {
            connection,
            retries,
            settings,
            row_bytes: 0,
            block_rows: AtomicU64::new(MOST_BLOCK_ROWS),
        }
    }

    /// Asks for blocks that suit the parts of the tables.
    pub(super) fn suit(&mut self, widths: &[Widths]) {
        let widest = widths.iter().map(|table| table.parts * table.row_bytes);
        self.row_bytes = widest.max().unwrap_or_default();
        self.forget_small_blocks();
    }

    /// Asks for blocks as large as at first: what comes may be narrower.
    pub(super) fn forget_small_blocks(&self) {
        let rows = block_rows(self.row_bytes);
        self.block_rows.store(rows, Ordering::Relaxed);
    }

    /// All rows of a result, which is small.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::error::Kind) with `what` cannot be compared.
    pub(super) async fn rows<T>(&self, what: &str, sql: &str) -> Result<Vec<T>, Error>
    where
        T: RowOwned + RowRead,
    {
        Ok(self.ask(what, sql, None).await?)
    }

    /// The same for a statement about a share of all traces. Where the server lacks
    /// memory, and smaller blocks do not help, the caller divides the share, as long
    /// as it can be divided.
    ///
    /// # Errors
    /// [`QueryError`]
    pub(super) async fn rows_of_share<T>(
        &self,
        what: &str,
        sql: &str,
        share: Share,
    ) -> Result<Vec<T>, QueryError>
    where
        T: RowOwned + RowRead,
    {
        self.ask(what, sql, Some(share)).await
    }

    async fn ask<T>(
        &self,
        what: &str,
        sql: &str,
        share: Option<Share>,
    ) -> Result<Vec<T>, QueryError>
    where
        T: RowOwned + RowRead,
    {
        let divisible = share.filter(|share| share.is_divisible());
        let mut tries = self.retries.attempts();
        let mut lacked_memory = false;
        loop {
            let block_rows = self.block_rows.load(Ordering::Relaxed);
            let mut settings = self.settings.clone();
            settings.push(("max_block_size", block_rows.to_string()));
            let asked = self.connection.rows_with(sql, &settings, PATIENCE);
            let error = match asked.await {
                Ok(rows) => return Ok(rows),
                Err(error) => error,
            };
            let lacks_memory = error.is_too_large();
            let is_to_be_divided = lacks_memory
                && divisible.is_some_and(|share| {
                    lacked_memory || !self.blocks_may_be_large(block_rows, share)
                });
            if lacks_memory && !is_to_be_divided {
                let fewer = (block_rows / SMALLER).max(FEWEST_BLOCK_ROWS);
                self.block_rows.fetch_min(fewer, Ordering::Relaxed);
            }
            lacked_memory = lacks_memory;
            if is_to_be_divided || !tries.again(error.is_passing(), &error.kind(), &error).await {
                let advice = match lacks_memory {
                    true => ": verify when the server has less to do, or raise its memory limit",
                    false => "",
                };
                return Err(QueryError {
                    is_to_be_divided,
                    error: Error::failed(format!(
                        "{what} cannot be compared{}: {error}{advice}",
                        tries.in_words()
                    )),
                });
            }
        }
    }

    /// Whether the blocks may be what the server lacks memory for: on average, or where
    /// dividing has not helped, because some rows are far wider than others.
    fn blocks_may_be_large(&self, block_rows: u64, share: Share) -> bool {
        block_rows * self.row_bytes > SMALL_BLOCKS_BYTES || share.of >= MANY_SHARES
    }
}

/// Why a statement has no result.
#[derive(Debug)]
pub(super) struct QueryError {
    /// Whether the server lacks memory for it, and may have enough for its parts.
    pub is_to_be_divided: bool,
    error: Error,
}

impl From<Error> for QueryError {
    fn from(error: Error) -> Self {
        Self {
            is_to_be_divided: false,
            error,
        }
    }
}

impl From<QueryError> for Error {
    fn from(error: QueryError) -> Self {
        error.error
    }
}

/// Settings that keep what a statement takes of the server small. Those that its meaning depends on
/// are the connection's.
fn settings() -> Vec<(&'static str, String)> {
    [
        ("max_threads", "2"),
        ("preferred_block_size_bytes", "1000000"),
        // What would grow with the rows goes to the server's disk from here on.
        ("max_bytes_before_external_group_by", "67108864"),
        ("max_bytes_before_external_sort", "67108864"),
        ("join_algorithm", "hash"),
        ("optimize_move_to_prewhere_if_final", "0"),
        ("split_intersecting_parts_ranges_into_layers_final", "0"),
        ("use_query_condition_cache", "0"),
        // Ids of traces that lie far away are part of the statement.
        ("max_ast_elements", "10000000"),
        ("max_expanded_ast_elements", "10000000"),
        // Who ends this program ends its statements with it.
        ("cancel_http_readonly_queries_on_client_close", "1"),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .into()
}

/// Rows of a block, where a row of each part together has so many bytes.
fn block_rows(row_bytes: u64) -> u64 {
    (BLOCKS_BYTES / row_bytes.max(1)).clamp(FEWEST_BLOCK_ROWS, MOST_BLOCK_ROWS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_rows_in_many_parts_are_read_in_small_blocks() {
        assert_eq!(block_rows(0), 4_096);
        assert_eq!(block_rows(11 * 2_000), 4_096);
        assert_eq!(block_rows(20 * 20_000), 250);
        assert_eq!(block_rows(300 * 1_000_000), 16);
    }
}
