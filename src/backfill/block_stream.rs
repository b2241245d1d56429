//! A statement's answer as blocks.

use std::time::Duration;

use super::error::WorkError;
use crate::clickhouse::{Connection, NativeStream};
use crate::memory::buffer_pool::BufferPool;
use crate::native::{Block, BlockReader};
use crate::shutdown::Shutdown;

/// How a statement is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading<'a> {
    /// The statement.
    pub sql: &'a str,
    /// Its settings.
    pub settings: &'a [(&'static str, String)],
    /// How long the server may be silent.
    pub silence: Duration,
    /// The largest block that may arrive, in bytes.
    pub max_block_bytes: usize,
}

/// The blocks of an answer, in the order in which they arrive.
pub(crate) struct BlockStream<'a> {
    stream: NativeStream,
    reader: BlockReader,
    shutdown: &'a Shutdown,
    is_complete: bool,
}

impl<'a> BlockStream<'a> {
    /// Sends the statement.
    ///
    /// # Errors
    /// [`WorkError::Request`] where it cannot be formed.
    pub(crate) fn open(
        connection: &Connection,
        reading: Reading<'_>,
        pool: &BufferPool,
        shutdown: &'a Shutdown,
    ) -> Result<Self, WorkError> {
        let stream = connection.stream(reading.sql, reading.settings)?;
        Ok(Self {
            stream: stream.with_silence(reading.silence),
            reader: BlockReader::new(reading.max_block_bytes, pool),
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
