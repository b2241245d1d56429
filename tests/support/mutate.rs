//! Bytes that somebody has damaged.

/// Changes, removes or repeats some bytes, in ways that readers of lengths stumble over.
pub fn mutate(bytes: &mut Vec<u8>, random: &mut fastrand::Rng) {
    if bytes.is_empty() {
        return;
    }
    let position = random.usize(0..bytes.len());
    let length = random.usize(1..=16).min(bytes.len() - position);
    match random.u8(0..8) {
        0 => bytes[position] ^= 1 << random.u8(0..8),
        1 => bytes[position] = random.u8(..),
        2 => bytes[position] = [0, 1, 0x7f, 0x80, 0xff][random.usize(0..5)],
        3 => bytes[position..position + length].fill([0, 0x80, 0xff][random.usize(0..3)]),
        4 => {
            let number = [u64::MAX, 1 << 63, 1 << 32, 1 << 20, 0][random.usize(0..5)];
            let length = length.min(8);
            bytes[position..position + length].copy_from_slice(&number.to_le_bytes()[..length]);
        }
        5 => drop(bytes.drain(position..position + length)),
        6 => {
            let again = bytes[position..position + length].to_vec();
            bytes.splice(position..position, again);
        }
        _ => bytes.truncate(position),
    }
}
