//! Reading a little from a stream while its rows cannot be sent on.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::backfill::error::WorkError;

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
    /// What has come of them and is not looked at yet, in its order.
    pub sipped: &'a mut VecDeque<Bytes>,
    /// Most bytes that may come besides; less than none where more is held than should be.
    pub room: isize,
    /// When something came last, or this began.
    pub last_read: &'a mut Instant,
}

impl<S: KeepAlive> Arriving<'_, S> {
    /// Waits for something, sipping meanwhile.
    ///
    /// # Errors
    /// What is waited for, or the source.
    pub(crate) async fn meanwhile<T>(
        &mut self,
        waiting: impl Future<Output = Result<T, WorkError>>,
    ) -> Result<T, WorkError> {
        // Outside the loop, so that it is not begun anew after a sip.
        let mut waiting = std::pin::pin!(waiting);
        loop {
            tokio::select! {
                waited = &mut waiting => return waited,
                // Also where each wait is short, and nothing is read between them.
                () = tokio::time::sleep_until(*self.last_read + SIP_EVERY) => {}
            }
            self.sip().await?;
            *self.last_read = Instant::now();
        }
    }

    /// So many bytes are not held any more.
    pub(crate) fn gives_back(&mut self, bytes: usize) {
        self.room = self.room.saturating_add_unsigned(bytes);
    }

    /// Reads a little, if there is room for it: rather let the read break, and
    /// the segment be done again, than go over budget. The wait is short, so
    /// that the end of the insert is not missed.
    async fn sip(&mut self) -> Result<(), WorkError> {
        let ends = Instant::now() + SIP_FOR;
        let mut left = usize::try_from(self.room).unwrap_or(0).min(SIP_BYTES);
        while left > 0
            && let Ok(chunk) = tokio::time::timeout_at(ends, self.rows.next_chunk()).await
            && let Some(chunk) = chunk?
        {
            left = left.saturating_sub(chunk.len());
            self.room = self.room.saturating_sub_unsigned(chunk.len());
            self.sipped.push_back(chunk);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Numbers(u8);

    impl KeepAlive for Numbers {
        async fn next_chunk(&mut self) -> Result<Option<Bytes>, WorkError> {
            self.0 += 1;
            Ok(Some(vec![self.0; 1000].into()))
        }
    }

    #[tokio::test]
    async fn sips_stay_in_their_order_behind_what_came_before_and_within_the_room() {
        let mut rows = Numbers(0);
        let mut sipped = VecDeque::from([Bytes::from_static(&[0])]);
        let mut source = Arriving {
            rows: &mut rows,
            sipped: &mut sipped,
            room: 2500,
            last_read: &mut Instant::now(),
        };
        source.sip().await.unwrap();
        source.sip().await.unwrap();
        let first: Vec<u8> = sipped.iter().map(|chunk| chunk[0]).collect();
        assert_eq!(first, [0, 1, 2, 3]);
    }

    #[tokio::test]
    async fn room_that_is_given_back_to_an_overdrawn_share_is_not_sipped_into() {
        let (mut rows, mut sipped) = (Numbers(0), VecDeque::new());
        let mut source = Arriving {
            rows: &mut rows,
            sipped: &mut sipped,
            room: -3000,
            last_read: &mut Instant::now(),
        };
        source.gives_back(2000);
        source.sip().await.unwrap();
        assert!(source.sipped.is_empty());
        source.gives_back(1500);
        source.sip().await.unwrap();
        assert_eq!(source.sipped.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn many_short_waits_without_a_read_between_them_are_sipped_in_too() {
        let (mut rows, mut sipped) = (Numbers(0), VecDeque::new());
        let mut last_read = Instant::now();
        for _ in 0..10 {
            let mut source = Arriving {
                rows: &mut rows,
                sipped: &mut sipped,
                room: 1000,
                last_read: &mut last_read,
            };
            let waiting = async {
                tokio::time::sleep(Duration::from_secs(5)).await;
                Ok(())
            };
            source.meanwhile(waiting).await.unwrap();
        }
        // 50 s: every eight of them.
        assert!((5..=6).contains(&sipped.len()), "{}", sipped.len());
    }
}
