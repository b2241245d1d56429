//! Enriched blocks, gathered into the bytes of one insert.

use std::io::Write;

use bytes::Bytes;
use lz4_flex::frame::FrameEncoder;

use crate::clickhouse::Compression;
use crate::enrich::EnrichedBlock;

/// A batch that is being filled. Compressed as it grows, so that it takes the
/// memory of what will be sent.
pub struct Batch {
    encoder: Option<FrameEncoder<Vec<u8>>>,
    pieces: Vec<Bytes>,
    rows: usize,
    without_trace: usize,
    bytes: usize,
}

/// A batch that is complete.
#[derive(Debug, Clone)]
pub struct SealedBatch {
    /// What is sent.
    pub body: Vec<Bytes>,
    /// Rows in it.
    pub rows: usize,
    /// Rows of it whose trace was not found.
    pub without_trace: usize,
}

impl Batch {
    /// An empty batch.
    pub fn new(compression: Compression) -> Self {
        let encoder = match compression {
            Compression::None => None,
            Compression::Lz4 => Some(FrameEncoder::new(Vec::new())),
        };
        Self {
            encoder,
            pieces: Vec::new(),
            rows: 0,
            without_trace: 0,
            bytes: 0,
        }
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of memory held so far, before compression.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a block.
    ///
    /// # Errors
    /// Does not happen: compression goes into memory.
    pub fn push(&mut self, block: EnrichedBlock) -> std::io::Result<()> {
        self.rows += block.rows;
        self.without_trace += block.without_trace;
        self.bytes += block.held_bytes;
        match &mut self.encoder {
            None => self.pieces.extend(block.pieces),
            Some(encoder) => {
                for piece in &block.pieces {
                    encoder.write_all(piece)?;
                }
            }
        }
        Ok(())
    }

    /// Completes the batch.
    ///
    /// # Errors
    /// Does not happen: compression goes into memory.
    pub fn seal(self) -> std::io::Result<SealedBatch> {
        let body = match self.encoder {
            None => self.pieces,
            Some(encoder) => vec![Bytes::from(
                encoder.finish().map_err(std::io::Error::other)?,
            )],
        };
        Ok(SealedBatch {
            body,
            rows: self.rows,
            without_trace: self.without_trace,
        })
    }
}
