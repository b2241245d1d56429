//! A pool of reusable buffers of several megabytes.
//!
//! Blocks come and go at a high rate. Left to the allocator, they fragment its arenas (measured:
//! 530 MB resident with 320 MB in use). Mapping and unmapping each one costs as much system time as
//! all other work.

use std::io::Write;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Keeps idle buffers for reuse. Cheap to clone; clones share the buffers.
///
/// Use one pool per buffer size: every buffer eventually grows to the largest use it has seen.
/// Buffers that grew beyond the limit are freed instead of kept.
#[derive(Debug, Clone)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    max_kept_bytes: usize,
    max_buffer_bytes: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

impl BufferPool {
    /// A pool that keeps at most `max_kept_bytes` of idle buffers, none larger than
    /// `max_buffer_bytes`.
    pub fn new(max_kept_bytes: usize, max_buffer_bytes: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                max_kept_bytes,
                max_buffer_bytes,
                kept: Mutex::default(),
            }),
        }
    }

    /// An empty pool with the same limits, for buffers of another size.
    pub fn for_another_size(&self) -> Self {
        Self::new(self.shared.max_kept_bytes, self.shared.max_buffer_bytes)
    }

    /// An empty buffer. It keeps the capacity of its last use.
    pub fn take(&self) -> PooledBuffer {
        let mut kept = self
            .shared
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let buffer = kept.buffers.pop().unwrap_or_default();
        kept.bytes -= buffer.capacity();
        PooledBuffer {
            buffer,
            pool: Arc::clone(&self.shared),
        }
    }
}

/// A buffer that returns to its pool when dropped.
#[derive(Debug)]
pub struct PooledBuffer {
    buffer: Vec<u8>,
    pool: Arc<Shared>,
}

impl PooledBuffer {
    /// The content as shared bytes. The buffer returns to its pool when the last clone is dropped.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for PooledBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Deref for PooledBuffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.buffer
    }
}

impl DerefMut for PooledBuffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }
}

impl Write for PooledBuffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.buffer.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.capacity() > self.pool.max_buffer_bytes {
            return;
        }
        buffer.clear();
        let mut kept = self
            .pool
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if kept.bytes + buffer.capacity() <= self.pool.max_kept_bytes {
            kept.bytes += buffer.capacity();
            kept.buffers.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_the_last_bytes_of_it_are_gone() {
        let pool = BufferPool::new(1 << 20, 1 << 20);
        let mut buffer = pool.take();
        buffer.extend_from_slice(&[7; 1000]);
        let address = buffer.as_ptr();
        let bytes = buffer.freeze();
        let slice = bytes.slice(10..20);
        drop(bytes);
        assert_ne!(pool.take().as_ptr(), address);
        assert_eq!(slice, [7; 10][..]);
        drop(slice);
        let again = pool.take();
        assert_eq!(again.as_ptr(), address);
        assert!(again.is_empty());
    }

    #[test]
    fn no_more_is_kept_than_allowed() {
        let pool = BufferPool::new(1000, 950);
        for size in [900, 900, 20, 990] {
            let mut buffer = pool.take();
            buffer.reserve_exact(size);
            let _other = pool.take();
        }
        let kept = pool.shared.kept.lock().unwrap();
        assert!(kept.bytes <= 1000);
        assert!(kept.buffers.iter().all(|buffer| buffer.capacity() <= 950));
        assert_eq!(
            kept.bytes,
            kept.buffers.iter().map(Vec::capacity).sum::<usize>()
        );
    }
}
