//! Whatever a state directory holds is an error or a value, never a panic. (For the bytes that
//! ClickHouse sends see `pass_through.rs`.)

use std::collections::BTreeMap;
use std::panic::catch_unwind;

use crate::support::mutate::mutate;
use events_backfill::internals::{
    Boundary, Checkpoint, RunIdentity, Segment, SegmentCounts, Source, TraceRecord,
};
use serde_bytes::{ByteBuf, Bytes};

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

fn checkpoint() -> Checkpoint {
    let facts = BTreeMap::from([("the server".to_owned(), "http://a".to_owned())]);
    let mut checkpoint = Checkpoint::begin(RunIdentity::of(facts), "run".to_owned(), 1);
    let boundary = |day| Boundary {
        project_id: ByteBuf::from("project"),
        observation_type: ByteBuf::from("SPAN"),
        day,
        id: Some(ByteBuf::from("observation")),
    };
    let segments = (0..5).map(|number| Segment {
        number,
        source: Source::Observations,
        from: Some(boundary(19_875)),
        to: Some(boundary(19_876)),
        rows: 250_000,
    });
    checkpoint.segments = Some(segments.collect());
    for number in 0..5_u16 {
        checkpoint.days.insert(19_875 + number, (12, 10));
        checkpoint
            .done
            .insert(number.into(), SegmentCounts::default());
    }
    checkpoint.superseded = Some(1);
    checkpoint
}

#[test]
fn a_damaged_checkpoint_is_an_error_even_where_its_checksum_is_right() {
    let file = checkpoint().encode().unwrap();
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
    let record = TraceRecord {
        event_ts: 1_717_200_000_000_000,
        is_deleted: false,
        day: 19_875,
        public: true,
        bookmarked: false,
        texts: std::array::from_fn(|place| Bytes::new(&b"a text"[place..])),
        tags: vec![Bytes::new(b"one"), Bytes::new(b"two")],
        metadata: vec![(Bytes::new(b"key"), Bytes::new(b"value")); 3],
    };
    let mut encoded = Vec::new();
    record.encode(&mut encoded).unwrap();
    let errors = errors_among_mutations(&encoded, |bytes| TraceRecord::decode(bytes).is_ok());
    assert!(errors > MUTATIONS / 10, "mutations break something");
}
