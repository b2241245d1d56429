//! A statement's answer as blocks.

use super::error::WorkError;
use crate::clickhouse::{Connection, NativeStream, Statement, TableInfo};
use crate::memory::buffer_pool::BufferPool;
use crate::native::{Block, BlockReader};
use crate::shutdown::Shutdown;

/// Waits until the replica that is asked has all rows of a table that is about to be read. What it has not
/// fetched yet would be missed.
///
/// # Errors
/// [`WorkError::Request`] where it does not get there, or [`WorkError::Interrupted`].
pub(crate) async fn catch_up(
    connection: &Connection,
    table: &TableInfo,
    shutdown: &Shutdown,
) -> Result<(), WorkError> {
    tokio::select! {
        caught_up = connection.catch_up(table) => Ok(caught_up?),
        _ = shutdown.requested() => Err(WorkError::Interrupted),
    }
}

/// The blocks of an answer, in the order in which they arrive.
pub(crate) struct BlockStream<'a> {
    stream: NativeStream,
    reader: BlockReader,
    shutdown: &'a Shutdown,
    is_complete: bool,
}

impl<'a> BlockStream<'a> {
    /// Sends a statement, of whose answer no block may take more than `max_block_bytes`.
    ///
    /// # Errors
    /// [`WorkError::Request`] where it cannot be formed.
    pub(crate) fn open(
        connection: &Connection,
        statement: &Statement,
        max_block_bytes: usize,
        pool: &BufferPool,
        shutdown: &'a Shutdown,
    ) -> Result<Self, WorkError> {
        Ok(Self {
            stream: connection.send(statement)?,
            reader: BlockReader::new(max_block_bytes, pool),
            shutdown,
            is_complete: false,
        })
    }

    /// The next block, or `None` at the end of a complete answer.
    ///
    /// # Errors
    /// [`WorkError`] of whatever kind; [`WorkError::Interrupted`] where the run is asked to end.
    pub(crate) async fn next(&mut self) -> Result<Option<Block>, WorkError> {
        loop {
            if let Some(block) = self.reader.next_block()? {
                return Ok(Some(block));
            }
            if self.is_complete {
                return Ok(None);
            }
            let chunk = tokio::select! {
                chunk = self.stream.next_chunk() => chunk?,
                _ = self.shutdown.requested() => return Err(WorkError::Interrupted),
            };
            match chunk {
                Some(chunk) => self.reader.push(&chunk),
                None => {
                    self.reader.finish()?;
                    self.is_complete = true;
                }
            }
        }
    }
}
