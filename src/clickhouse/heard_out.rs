//! A connection that still reads the answer when the rest of the request can no longer be sent.
//!
//! A server that rejects an insert answers at once and closes the connection while we are still sending.
//! The HTTP client would then report the broken pipe and drop the answer, which says what went wrong.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use tower_service::Service;

/// Makes connections that are [`HeardOut`].
#[derive(Clone)]
pub(super) struct HearingOut<C>(pub(super) C);

impl<C> Service<Uri> for HearingOut<C>
where
    C: Service<Uri>,
    C::Future: Send + 'static,
{
    type Response = HeardOut<C::Response>;
    type Error = C::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, C::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, address: Uri) -> Self::Future {
        let connecting = self.0.call(address);
        Box::pin(async move { Ok(HeardOut(connecting.await?)) })
    }
}

/// A connection that swallows writes once the other side has closed; reading then yields the answer.
pub(super) struct HeardOut<T>(T);

/// Reports a full write if the other side has closed the connection.
fn heard_out<N>(written: Poll<io::Result<N>>, all: N) -> Poll<io::Result<N>> {
    match written {
        Poll::Ready(Err(error))
            if matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ) =>
        {
            Poll::Ready(Ok(all))
        }
        written => written,
    }
}

impl<T: Read + Unpin> Read for HeardOut<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<T: Write + Unpin> Write for HeardOut<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.0).poll_write(context, bytes);
        heard_out(written, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.0).poll_write_vectored(context, pieces);
        heard_out(written, pieces.iter().map(|piece| piece.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        heard_out(Pin::new(&mut self.0).poll_flush(context), ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        heard_out(Pin::new(&mut self.0).poll_shutdown(context), ())
    }
}

impl<T: Connection> Connection for HeardOut<T> {
    fn connected(&self) -> Connected {
        self.0.connected()
    }
}
