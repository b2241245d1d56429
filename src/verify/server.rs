//! Queries the server, with retries, and with smaller blocks if it lacks memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clickhouse::{RowOwned, RowRead};

use super::rows::Widths;
use super::scope::Share;
use crate::clickhouse::Connection;
use crate::clickhouse::retry::Retries;
use crate::error::Error;

/// Timeout of a statement, which reads a batch on both sides or the ids of all traces.
const PATIENCE: Duration = Duration::from_secs(3_600);

/// Maximum rows per block. Larger blocks gain little.
const MOST_BLOCK_ROWS: u64 = 4_096;
/// Minimum rows per block. Smaller blocks slow the server down many times.
const FEWEST_BLOCK_ROWS: u64 = 16;
/// Total size of the blocks of all parts of a partition, in bytes. `FINAL` holds one block per
/// part, two or three times over, and ignores byte limits on blocks.
const BLOCKS_BYTES: u64 = 100_000_000;
/// Blocks up to this size, in bytes, are not why a server runs out of memory.
const SMALL_BLOCKS_BYTES: u64 = 16_000_000;
/// From this many shares on, each is small.
const MANY_SHARES: u64 = 16;
/// Factor for smaller blocks when the server lacks memory.
const SMALLER: u64 = 4;

/// The server.
pub(super) struct Server {
    connection: Connection,
    retries: Retries,
    settings: Vec<(&'static str, String)>,
    /// Bytes of one row from each part, for the table where that is most.
    row_bytes: u64,
    block_rows: AtomicU64,
}

impl Server {
    /// `partitions_are_apart` says that rows in different partitions are never versions of each
    /// other.
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

    /// Sets the block size to suit the tables' parts.
    pub(super) fn suit(&mut self, widths: &[Widths]) {
        let widest = widths.iter().map(|table| table.parts * table.row_bytes);
        self.row_bytes = widest.max().unwrap_or_default();
        self.forget_small_blocks();
    }

    /// Restores the initial block size: later rows may be narrower.
    pub(super) fn forget_small_blocks(&self) {
        let rows = block_rows(self.row_bytes);
        self.block_rows.store(rows, Ordering::Relaxed);
    }

    /// All rows of a small result.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::error::Kind) if reading `what` fails after retries.
    pub(super) async fn rows<T>(&self, what: &str, sql: &str) -> Result<Vec<T>, Error>
    where
        T: RowOwned + RowRead,
    {
        Ok(self.ask(what, sql, None).await?)
    }

    /// Like `rows`, for a statement over a share of all traces. If the server lacks memory and
    /// smaller blocks do not help, the caller divides the share while it can be divided.
    ///
    /// # Errors
    /// [`QueryError`] if reading `what` fails after retries, or the share should be divided.
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
                    true => {
                        "; verify again when the server is less busy, or raise its memory limit"
                    }
                    false => "",
                };
                return Err(QueryError {
                    is_to_be_divided,
                    error: Error::failed(format!(
                        "reading {what} failed{}: {error}{advice}",
                        tries.in_words()
                    )),
                });
            }
        }
    }

    /// Whether block size may be why the server lacks memory: blocks are large on average, or
    /// dividing did not help because some rows are far wider than others.
    fn blocks_may_be_large(&self, block_rows: u64, share: Share) -> bool {
        block_rows * self.row_bytes > SMALL_BLOCKS_BYTES || share.of >= MANY_SHARES
    }
}

/// Why a statement has no result.
#[derive(Debug)]
pub(super) struct QueryError {
    /// Whether the server lacked memory and dividing the scope may help.
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

/// Settings that limit a statement's use of the server. Those that affect its meaning belong to the
/// connection.
fn settings() -> Vec<(&'static str, String)> {
    [
        ("max_threads", "2"),
        ("preferred_block_size_bytes", "1000000"),
        // From here on, whatever grows with the rows goes to the server's disk.
        ("max_bytes_before_external_group_by", "67108864"),
        ("max_bytes_before_external_sort", "67108864"),
        ("join_algorithm", "hash"),
        ("optimize_move_to_prewhere_if_final", "0"),
        ("split_intersecting_parts_ranges_into_layers_final", "0"),
        ("use_query_condition_cache", "0"),
        // The statement contains the ids of distant traces.
        ("max_ast_elements", "10000000"),
        ("max_expanded_ast_elements", "10000000"),
        // Ending this program ends its statements.
        ("cancel_http_readonly_queries_on_client_close", "1"),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .into()
}

/// Rows per block, given the bytes of one row from each part.
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
