//! Keeps a response alive by reading a little while its rows cannot be sent on.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::backfill::error::WorkError;

/// ClickHouse closes a response that nobody reads for 30 s (`http_send_timeout`; setting it with
/// the query has no effect: measured on 26.7). During a long insert, read a little at least this
/// often.
const SIP_EVERY: Duration = Duration::from_secs(8);
/// Bytes per read. Kernel buffers on both sides hold megabytes of an unread response; ClickHouse
/// only notices a read when a third of its own buffer has drained.
const SIP_BYTES: usize = 1024 * 1024;
/// Maximum wait for one such read.
const SIP_FOR: Duration = Duration::from_millis(500);

/// A source of bytes that can be read a little at a time.
pub(crate) trait KeepAlive {
    /// The next bytes, or `None` at the end.
    ///
    /// # Errors
    /// [`WorkError`] if the source fails.
    fn next_chunk(&mut self) -> impl Future<Output = Result<Option<Bytes>, WorkError>> + Send;
}

/// A segment's incoming rows, read a little at a time during a long insert.
pub(crate) struct Arriving<'a, S> {
    /// Their source.
    pub rows: &'a mut S,
    /// Bytes read but not yet processed, in order.
    pub sipped: &'a mut VecDeque<Bytes>,
    /// Bytes that may still be read; negative if too many are held.
    pub room: isize,
    /// Time of the last read, or of the start.
    pub last_read: &'a mut Instant,
}

impl<S: KeepAlive> Arriving<'_, S> {
    /// Waits for `waiting`, reading a little meanwhile.
    ///
    /// # Errors
    /// [`WorkError`] if `waiting` or the source fails.
    pub(crate) async fn meanwhile<T>(
        &mut self,
        waiting: impl Future<Output = Result<T, WorkError>>,
    ) -> Result<T, WorkError> {
        // Pinned outside the loop, so that it continues after each read.
        let mut waiting = std::pin::pin!(waiting);
        loop {
            tokio::select! {
                waited = &mut waiting => return waited,
                // Also covers many short waits without a read between them.
                () = tokio::time::sleep_until(*self.last_read + SIP_EVERY) => {}
            }
            self.sip().await?;
            *self.last_read = Instant::now();
        }
    }

    /// Releases `bytes` of held memory.
    pub(crate) fn gives_back(&mut self, bytes: usize) {
        self.room = self.room.saturating_add_unsigned(bytes);
    }

    /// Reads a little, if there is room. If not, better let the response break and repeat the
    /// segment than exceed the budget. The wait is short, so as not to miss the end of the insert.
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
        // 50 s, one read every eight.
        assert!((5..=6).contains(&sipped.len()), "{}", sipped.len());
    }
}
