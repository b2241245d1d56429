//! The body of an insert.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

/// Bytes handed to the HTTP client at once.
const FRAME_BYTES: usize = 256 * 1024;

/// The pieces of a batch as an HTTP body, sent without being joined.
pub(super) struct BatchBody {
    pieces: VecDeque<Bytes>,
    /// Bytes that are to be sent.
    pub(super) remaining: u64,
}

impl BatchBody {
    pub(super) fn new(pieces: &[Bytes]) -> Self {
        Self {
            pieces: pieces.iter().filter(|p| !p.is_empty()).cloned().collect(),
            remaining: pieces.iter().map(|piece| piece.len() as u64).sum(),
        }
    }
}

impl Body for BatchBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(piece) = self.pieces.front_mut() else {
            return Poll::Ready(None);
        };
        // The HTTP client may copy a frame into its own buffer, whatever its size.
        let frame = piece.split_to(piece.len().min(FRAME_BYTES));
        if piece.is_empty() {
            self.pieces.pop_front();
        }
        self.remaining -= frame.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}
