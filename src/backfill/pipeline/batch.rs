//! Enriched blocks, gathered into the bytes of one insert.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use lz4_flex::frame::{FrameEncoder, FrameInfo};

use crate::clickhouse::Compression;
use crate::enrich::EnrichedBlock;
use crate::memory::buffer_pool::{BufferPool, PooledBuffer};

/// Batches are made in these ways.
#[derive(Debug, Clone)]
pub(crate) struct BatchMaker {
    /// Whether batches are compressed.
    pub compression: Compression,
    /// Buffers of compressed blocks.
    pub pool: BufferPool,
}

/// A batch that is being filled. Compressed as it grows, so that it takes the
/// memory of what will be sent.
pub(crate) struct Batch {
    compressed_in: Option<BufferPool>,
    blocks: Vec<SealedBlock>,
    rows: usize,
    bytes: usize,
    held_bytes: usize,
}

/// A batch that is complete.
#[derive(Debug, Clone)]
pub(crate) struct SealedBatch {
    blocks: Vec<SealedBlock>,
}

/// One block of a batch.
#[derive(Debug, Clone)]
struct SealedBlock {
    pieces: Vec<Bytes>,
    rows: usize,
    without_trace: usize,
    in_experiments: usize,
    bytes: usize,
    held_bytes: usize,
}

impl BatchMaker {
    /// An empty batch.
    pub(crate) fn begin(&self) -> Batch {
        Batch {
            compressed_in: match self.compression {
                Compression::None => None,
                Compression::Lz4 => Some(self.pool.clone()),
            },
            blocks: Vec::new(),
            rows: 0,
            bytes: 0,
            held_bytes: 0,
        }
    }
}

impl Batch {
    /// Rows so far.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes so far, before compression.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of memory it holds.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Adds a block.
    ///
    /// # Errors
    /// Does not happen: compression goes into memory.
    pub(crate) fn push(&mut self, block: EnrichedBlock) -> std::io::Result<()> {
        let mut sealed = SealedBlock {
            rows: block.rows,
            without_trace: block.without_trace,
            in_experiments: block.in_experiments,
            bytes: block.bytes(),
            held_bytes: block.held_bytes,
            pieces: block.pieces,
        };
        if let Some(pool) = &self.compressed_in {
            let compressed = compress(&sealed.pieces, pool.take())?;
            sealed.held_bytes = compressed.capacity();
            sealed.pieces = vec![compressed.freeze()];
        }
        self.rows += sealed.rows;
        self.bytes += sealed.bytes;
        self.held_bytes += sealed.held_bytes;
        self.blocks.push(sealed);
        Ok(())
    }

    /// Completes the batch.
    pub(crate) fn seal(self) -> SealedBatch {
        SealedBatch {
            blocks: self.blocks,
        }
    }
}

/// One LZ4 frame. Each block has one of its own: frames that follow each other are one body.
fn compress(pieces: &[Bytes], buffer: PooledBuffer) -> std::io::Result<PooledBuffer> {
    // The checksums let the server notice bytes that changed on their way.
    let frame = FrameInfo::new().block_checksums(true);
    let mut encoder = FrameEncoder::with_frame_info(frame, buffer);
    for piece in pieces {
        encoder.write_all(piece)?;
    }
    encoder.finish().map_err(std::io::Error::other)
}

impl SealedBatch {
    /// How many blocks it has.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// What is sent.
    pub(crate) fn body(&self) -> Vec<Bytes> {
        let pieces = self.blocks.iter().flat_map(|block| &block.pieces);
        pieces.cloned().collect()
    }

    /// Rows in it.
    pub(crate) fn rows(&self) -> usize {
        self.blocks.iter().map(|block| block.rows).sum()
    }

    /// Rows whose trace was not found.
    pub(crate) fn without_trace(&self) -> usize {
        self.blocks.iter().map(|block| block.without_trace).sum()
    }

    /// Rows that belong to an experiment.
    pub(crate) fn in_experiments(&self) -> usize {
        self.blocks.iter().map(|block| block.in_experiments).sum()
    }

    /// Bytes of memory that all its blocks hold.
    pub(crate) fn held_bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.held_bytes).sum()
    }

    /// Bytes, before compression.
    pub(crate) fn bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.bytes).sum()
    }
}

/// The most bytes of a batch: what the memory limit allows, and less for a while
/// after the server had too little memory for one.
#[derive(Debug)]
pub(crate) struct BatchLimit {
    allowed: usize,
    now: AtomicUsize,
    /// How far it grows for now: not to what was refused.
    ceiling: AtomicUsize,
    /// Batches that were taken since one was refused.
    taken: AtomicUsize,
}

/// A limit that was lowered grows by this part of what is allowed with each
/// batch that the server takes.
const RECOVERY: usize = 32;
/// So many batches have to be taken before one may be larger than three quarters of one that was
/// refused: after each refusal the segment is read once more from its beginning.
const PATIENCE: usize = 256;

impl BatchLimit {
    /// No batch has more bytes than `allowed`, unless it is a single block.
    pub(crate) fn new(allowed: usize) -> Self {
        Self {
            allowed,
            now: AtomicUsize::new(allowed),
            ceiling: AtomicUsize::new(allowed),
            taken: AtomicUsize::new(0),
        }
    }

    /// The most bytes at the moment.
    pub(crate) fn bytes(&self) -> usize {
        self.now.load(Ordering::Relaxed)
    }

    /// The server had too little memory for a batch of so many bytes.
    pub(crate) fn was_too_large(&self, bytes: usize) {
        self.now.fetch_min(bytes / 2, Ordering::Relaxed);
        self.ceiling.fetch_min(bytes / 4 * 3, Ordering::Relaxed);
        self.taken.store(0, Ordering::Relaxed);
    }

    /// The server took a batch.
    pub(crate) fn was_taken(&self) {
        let taken = self.taken.fetch_add(1, Ordering::Relaxed) + 1;
        if taken.is_multiple_of(PATIENCE) {
            self.grow(&self.ceiling, self.allowed);
        }
        self.grow(&self.now, self.ceiling.load(Ordering::Relaxed));
    }

    fn grow(&self, limit: &AtomicUsize, most: usize) {
        let grown = |now: usize| (now < most).then(|| most.min(now + self.allowed / RECOVERY));
        // An error says that there was nothing to change.
        let _ = limit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn block(text: &'static [u8]) -> EnrichedBlock {
        let (first, second) = text.split_at(text.len() / 2);
        EnrichedBlock {
            pieces: vec![Bytes::from_static(first), Bytes::from_static(second)],
            rows: 1,
            without_trace: 0,
            in_experiments: 0,
            held_bytes: text.len(),
        }
    }

    #[test]
    fn a_batch_is_the_bytes_of_its_blocks() {
        let texts: [&[u8]; 3] = [b"the first", b"the second", b"the third"];
        for compression in [Compression::None, Compression::Lz4] {
            let pool = BufferPool::new(1 << 20, 1 << 20);
            let mut batch = BatchMaker { compression, pool }.begin();
            for text in texts {
                batch.push(block(text)).unwrap();
            }
            let batch = batch.seal();
            assert_eq!((batch.blocks(), batch.rows()), (3, 3));
            let body = batch.body().concat();
            let plain = match compression {
                Compression::None => body,
                Compression::Lz4 => decompress(&body),
            };
            assert_eq!(plain, texts.concat());
            assert_eq!(batch.bytes(), plain.len());
        }
    }

    /// All frames, one after the other.
    fn decompress(mut frames: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        while !frames.is_empty() {
            lz4_flex::frame::FrameDecoder::new(&mut frames)
                .read_to_end(&mut plain)
                .unwrap();
        }
        plain
    }

    #[test]
    fn batches_become_smaller_at_once_and_larger_slowly() {
        let limit = BatchLimit::new(64);
        limit.was_too_large(40);
        assert_eq!(limit.bytes(), 20);
        limit.was_too_large(60);
        assert_eq!(limit.bytes(), 20);
        limit.was_taken();
        assert_eq!(limit.bytes(), 22);
        for _ in 0..100 {
            limit.was_taken();
        }
        // What was refused is not tried again soon.
        assert_eq!(limit.bytes(), 30);
        for _ in 0..17 * PATIENCE {
            limit.was_taken();
        }
        assert_eq!(limit.bytes(), 64);
    }
}
