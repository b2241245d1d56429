//! Lossless number conversions on the platforms we support. Elsewhere they saturate.

/// The integer part of a number, such as an estimate.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates at 0 and at the maximum, and an estimate has no fraction to lose"
)]
pub(crate) fn whole(number: f64) -> u64 {
    number as u64
}

/// A count of bytes or rows that fit in memory.
pub(crate) fn in_memory(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// A length or index below four billion.
pub(crate) fn short(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
