//! Reading a little from a stream while its rows cannot be sent on.

use std::time::Duration;

use bytes::Bytes;

use crate::backfill::error::WorkError;
use crate::native::BlockReader;

/// ClickHouse closes a response that nobody reads for 30 s (`http_send_timeout`;
/// giving another value with the query is not honoured: measured on 26.7). So
/// while an insert takes long, a little is read at least this often.
const SIP_EVERY: Duration = Duration::from_secs(8);
/// Bytes of a sip. The kernels on both sides hold megabytes of a response that
/// nobody reads; ClickHouse only sees that something was read when a third of
/// what its own holds has gone.
const SIP_BYTES: usize = 1024 * 1024;
/// How long a sip waits for bytes.
const SIP_FOR: Duration = Duration::from_millis(500);

/// Something that gives bytes, a little at a time.
pub(crate) trait KeepAlive {
    /// The next bytes, or `None` at the end.
    ///
    /// # Errors
    /// Whatever ends it before.
    fn next_chunk(&mut self) -> impl Future<Output = Result<Option<Bytes>, WorkError>> + Send;
}

/// What the rows of a segment arrive in, to be sipped from while an insert takes long.
pub(crate) struct Arriving<'a, S> {
    /// Where they come from.
    pub rows: &'a mut S,
    /// What takes its bytes.
    pub reader: &'a mut BlockReader,
    /// Most bytes that may wait in it.
    pub max_buffered_bytes: usize,
}

impl<S: KeepAlive> Arriving<'_, S> {
    /// Waits for something, sipping meanwhile.
    ///
    /// # Errors
    /// What is waited for, or the source.
    pub(crate) async fn meanwhile(
        &mut self,
        waiting: impl Future<Output = Result<(), WorkError>>,
    ) -> Result<(), WorkError> {
        // Outside the loop, so that it is not begun anew after a sip.
        let mut waiting = std::pin::pin!(waiting);
        loop {
            tokio::select! {
                waited = &mut waiting => return waited,
                () = tokio::time::sleep(SIP_EVERY) => {}
            }
            self.sip().await?;
        }
    }

    /// Reads a little, if there is room for it: rather let the read break, and
    /// the segment be done again, than go over budget. The wait is short, so
    /// that the end of the insert is not missed.
    async fn sip(&mut self) -> Result<(), WorkError> {
        let enough = self
            .max_buffered_bytes
            .min(self.reader.buffered_bytes() + SIP_BYTES);
        let ends = tokio::time::Instant::now() + SIP_FOR;
        while self.reader.buffered_bytes() < enough
            && let Ok(chunk) = tokio::time::timeout_at(ends, self.rows.next_chunk()).await
            && let Some(chunk) = chunk?
        {
            self.reader.push(&chunk);
        }
        Ok(())
    }
}
