//! Streams a statement's answer as blocks.

use super::error::WorkError;
use crate::clickhouse::{Connection, NativeStream, Statement, TableInfo};
use crate::memory::buffer_pool::BufferPool;
use crate::native::{Block, BlockReader};
use crate::shutdown::Shutdown;

/// Waits until the queried replica has all rows of `table`; rows not yet fetched would be missed.
///
/// # Errors
/// [`WorkError::Request`] if the replica does not catch up, [`WorkError::Interrupted`] on a signal.
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

/// The blocks of an answer, in order of arrival.
pub(crate) struct BlockStream<'a> {
    stream: NativeStream,
    reader: BlockReader,
    shutdown: &'a Shutdown,
    is_complete: bool,
}

impl<'a> BlockStream<'a> {
    /// Sends a statement. Blocks of the answer may take up to `max_block_bytes`.
    ///
    /// # Errors
    /// [`WorkError::Request`] if the request cannot be built.
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

    /// The next block, or `None` after a complete answer.
    ///
    /// # Errors
    /// [`WorkError::Request`] if the server fails, [`WorkError::Native`] if the answer is damaged,
    /// [`WorkError::Interrupted`] on a signal.
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
