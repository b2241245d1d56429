//! Prepares enriched blocks for sending.

use std::io::Write;

use bytes::Bytes;
use lz4_flex::frame::{FrameEncoder, FrameInfo};

use crate::clickhouse::Compression;
use crate::enrich::EnrichedBlock;
use crate::memory::buffer_pool::{BufferPool, PooledBuffer};

/// Compresses blocks, if enabled.
#[derive(Debug, Clone)]
pub(crate) struct Compressor {
    /// The compression to use.
    pub compression: Compression,
    /// Buffers for compressed blocks.
    pub pool: BufferPool,
}

/// A block ready to send.
#[derive(Debug)]
pub(crate) struct SealedBlock {
    /// Its bytes.
    pub pieces: Vec<Bytes>,
    /// Memory it holds, in bytes.
    pub held_bytes: usize,
}

impl SealedBlock {
    /// Bytes to send.
    pub(crate) fn bytes(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }
}

impl Compressor {
    /// Prepares a block for sending.
    ///
    /// # Errors
    /// [`std::io::Error`] if compression fails, which it does not in memory.
    pub(crate) fn seal(&self, block: EnrichedBlock) -> std::io::Result<SealedBlock> {
        match self.compression {
            Compression::None => Ok(SealedBlock {
                held_bytes: block.held_bytes,
                pieces: block.pieces,
            }),
            Compression::Lz4 => {
                let compressed = compress(&block.pieces, self.pool.take())?;
                Ok(SealedBlock {
                    held_bytes: compressed.capacity(),
                    pieces: vec![compressed.freeze()],
                })
            }
        }
    }
}

/// Compresses to one LZ4 frame. Each block gets its own; consecutive frames form one body.
fn compress(pieces: &[Bytes], buffer: PooledBuffer) -> std::io::Result<PooledBuffer> {
    // Checksums let the server detect bytes corrupted in transit.
    let frame = FrameInfo::new().block_checksums(true);
    let mut encoder = FrameEncoder::with_frame_info(frame, buffer);
    for piece in pieces {
        encoder.write_all(piece)?;
    }
    encoder.finish().map_err(std::io::Error::other)
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
    fn what_is_sent_is_the_bytes_of_the_blocks() {
        let texts: [&[u8]; 3] = [b"the first", b"the second", b"the third"];
        for compression in [Compression::None, Compression::Lz4] {
            let pool = BufferPool::new(1 << 20, 1 << 20);
            let compressor = Compressor { compression, pool };
            let sealed = texts.map(|text| compressor.seal(block(text)).unwrap());
            let body = sealed.map(|block| block.pieces.concat()).concat();
            let plain = match compression {
                Compression::None => body,
                Compression::Lz4 => decompress(&body),
            };
            assert_eq!(plain, texts.concat());
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
}
