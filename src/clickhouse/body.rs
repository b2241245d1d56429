//! The body of an insert, sent while it is still being made.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{Notify, mpsc};

/// Bytes handed to the HTTP client at a time.
const FRAME_BYTES: usize = 256 * 1024;

/// A body and the feed that fills it.
pub(super) fn body() -> (Feed, StreamedBody) {
    let (sender, fed) = mpsc::unbounded_channel();
    let feed = Feed {
        sender,
        backlog: Arc::default(),
    };
    let body = StreamedBody {
        fed,
        block: VecDeque::new(),
        is_ended: false,
    };
    (feed, body)
}

/// Supplies a body with blocks. Dropped before [`Feed::end`], it makes the body fail, so that the server
/// does not mistake an incomplete body for a complete one.
pub(super) struct Feed {
    sender: mpsc::UnboundedSender<Fed>,
    backlog: Arc<Backlog>,
}

enum Fed {
    Block(VecDeque<Bytes>),
    End,
}

/// The last piece of a block. Dropping it releases the block's memory from the backlog.
struct LastPiece {
    bytes: Bytes,
    #[expect(dead_code, reason = "it counts when it is dropped")]
    held: Held,
}

impl AsRef<[u8]> for LastPiece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Feed {
    /// Adds a block that occupies `held_bytes` of memory. Does not wait: see [`Backlog::at_most`].
    pub(super) fn push(&self, pieces: Vec<Bytes>, held_bytes: usize) {
        self.backlog.bytes.fetch_add(held_bytes, Ordering::Relaxed);
        let held = Held {
            bytes: held_bytes,
            backlog: Arc::clone(&self.backlog),
        };
        let mut pieces: VecDeque<Bytes> = pieces.into_iter().filter(|p| !p.is_empty()).collect();
        if let Some(last) = pieces.pop_back() {
            pieces.push_back(Bytes::from_owner(LastPiece { bytes: last, held }));
        }
        // Fails only if the request has ended; its answer then says why.
        let _ = self.sender.send(Fed::Block(pieces));
    }

    /// Marks the end: no more blocks follow.
    pub(super) fn end(&self) {
        let _ = self.sender.send(Fed::End);
    }

    /// The blocks that are not sent yet.
    pub(super) fn backlog(&self) -> &Backlog {
        &self.backlog
    }
}

/// Blocks that are not sent yet.
#[derive(Default)]
pub(super) struct Backlog {
    bytes: AtomicUsize,
    freed: Notify,
}

impl Backlog {
    /// Bytes of memory that they occupy.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Waits until they occupy at most `bytes`.
    pub(super) async fn at_most(&self, bytes: usize) {
        while self.bytes() > bytes {
            self.freed.notified().await;
        }
    }
}

/// Memory of a block, released once the HTTP client has sent the last bytes.
struct Held {
    bytes: usize,
    backlog: Arc<Backlog>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.backlog.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.backlog.freed.notify_one();
    }
}

/// The blocks of a [`Feed`] as an HTTP body.
pub(super) struct StreamedBody {
    fed: mpsc::UnboundedReceiver<Fed>,
    /// The unsent rest of the current block.
    block: VecDeque<Bytes>,
    is_ended: bool,
}

/// A body that is known from the start, and so has a `Content-Length`.
pub(super) fn whole(bytes: Bytes) -> StreamedBody {
    let (_, fed) = mpsc::unbounded_channel();
    StreamedBody {
        fed,
        block: VecDeque::from([bytes]),
        is_ended: true,
    }
}

/// The feed was dropped before the end.
#[derive(Debug, thiserror::Error)]
#[error("the insert was abandoned")]
pub(super) struct GivenUp;

impl Body for StreamedBody {
    type Data = Bytes;
    type Error = GivenUp;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, GivenUp>>> {
        loop {
            if let Some(piece) = self.block.front_mut() {
                // The HTTP client may copy a frame into its own buffer, whatever its size.
                let frame = piece.split_to(piece.len().min(FRAME_BYTES));
                if piece.is_empty() {
                    self.block.pop_front();
                }
                return Poll::Ready(Some(Ok(Frame::data(frame))));
            }
            if self.is_ended {
                return Poll::Ready(None);
            }
            match ready!(self.fed.poll_recv(context)) {
                Some(Fed::Block(pieces)) => self.block = pieces,
                Some(Fed::End) => self.is_ended = true,
                None => return Poll::Ready(Some(Err(GivenUp))),
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        let bytes = self.block.iter().map(|piece| piece.len() as u64).sum();
        let mut hint = SizeHint::new();
        match self.is_ended {
            true => hint.set_exact(bytes),
            false => hint.set_lower(bytes),
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_body_is_the_bytes_of_its_blocks_and_gives_their_memory_back() {
        let (feed, body) = body();
        let large = Bytes::from(vec![7; 3 * FRAME_BYTES + 1]);
        feed.push(vec![Bytes::from_static(b"one"), Bytes::new()], 10);
        feed.push(vec![large.clone(), Bytes::from_static(b"two")], 20);
        assert_eq!(feed.backlog().bytes(), 30);
        feed.end();
        let sent = body.collect().await.unwrap().to_bytes();
        assert_eq!(sent, [b"one", &large[..], b"two"].concat());
        feed.backlog().at_most(0).await;
    }

    #[tokio::test]
    async fn a_body_that_is_known_from_the_start_says_how_long_it_is() {
        let text = Bytes::from(vec![7; FRAME_BYTES + 1]);
        let body = whole(text.clone());
        assert_eq!(body.size_hint().exact(), Some(text.len() as u64));
        assert_eq!(body.collect().await.unwrap().to_bytes(), text);
    }

    #[tokio::test]
    async fn a_body_whose_feed_is_gone_breaks_off() {
        let (feed, body) = body();
        feed.push(vec![Bytes::from_static(b"one")], 3);
        drop(feed);
        assert!(body.collect().await.is_err());
    }
}
