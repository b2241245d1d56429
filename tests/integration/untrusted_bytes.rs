//! Whatever a state directory holds is an error or a value, never a panic. (For the bytes that
//! ClickHouse sends see `pass_through.rs`.)

use std::panic::catch_unwind;

use crate::support::mutate::mutate;
use crate::support::samples;
use events_backfill::internals::{Checkpoint, TraceRecord};

const MUTATIONS: usize = 50_000;

/// Bytes of a checkpoint file before its payload: magic, version, length, checksum.
const HEADER: usize = 24;

/// Reads many mutations of `original`, and gives how many of them were errors.
fn errors_among_mutations(
    original: &[u8],
    read: impl Fn(&[u8]) -> bool + std::panic::RefUnwindSafe,
) -> usize {
    let mut random = fastrand::Rng::with_seed(3);
    let mut errors = 0;
    for number in 0..MUTATIONS {
        let mut bytes = original.to_vec();
        for _ in 0..random.usize(1..4) {
            mutate(&mut bytes, &mut random);
        }
        // A panic would not tell the input that caused it.
        let is_error = catch_unwind(|| !read(&bytes))
            .unwrap_or_else(|_| panic!("mutation {number} panics: {bytes:02x?}"));
        errors += usize::from(is_error);
    }
    println!("{MUTATIONS} mutations, {errors} errors");
    errors
}

#[test]
fn a_damaged_checkpoint_is_an_error_even_where_its_checksum_is_right() {
    let file = samples::checkpoint(5).encode().unwrap();
    let (header, payload) = file.split_at(HEADER);
    let errors = errors_among_mutations(payload, |payload| {
        let mut described = header[..12].to_vec();
        described.extend((payload.len() as u64).to_le_bytes());
        let checksum = crc32fast::hash(&[&described, payload].concat());
        let file = [&described, &checksum.to_le_bytes()[..], payload].concat();
        Checkpoint::decode(&file).is_ok()
    });
    assert!(errors > MUTATIONS / 10, "mutations break something");
    // Without a new checksum every change is noticed.
    let errors = errors_among_mutations(&file, |bytes| {
        bytes != file && Checkpoint::decode(bytes).is_ok()
    });
    assert_eq!(errors, MUTATIONS);
}

#[test]
fn a_damaged_record_is_an_error_or_a_record() {
    let mut encoded = Vec::new();
    samples::full_record().encode(&mut encoded).unwrap();
    let errors = errors_among_mutations(&encoded, |bytes| TraceRecord::decode(bytes).is_ok());
    assert!(errors > MUTATIONS / 10, "mutations break something");
}
