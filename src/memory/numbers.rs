//! Conversions of numbers that lose nothing on the machines on which this runs, and end at the largest
//! number there is elsewhere.

/// The whole part of a number, such as an estimate.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast ends at 0 and at the largest number, and an estimate has no fraction to lose"
)]
pub(crate) fn whole(number: f64) -> u64 {
    number as u64
}

/// A number of bytes or rows, where memory is meant.
pub(crate) fn in_memory(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// A length or a place of something of which there are fewer than four billion.
pub(crate) fn short(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
