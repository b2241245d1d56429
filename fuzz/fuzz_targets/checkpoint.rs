//! Whatever a checkpoint's file holds is a checkpoint or an error, also where its checksum is right,
//! and a checkpoint that is written again is the same checkpoint.

#![no_main]

use std::collections::BTreeMap;

use events_backfill::internals::{
    Boundary, Checkpoint, RunIdentity, Segment, SegmentCounts, Source,
};
use libfuzzer_sys::fuzz_target;
use serde_bytes::ByteBuf;

mod seeds;

/// Bytes of the file that its checksum, the end of the header, is made of: magic, version, length.
const DESCRIBED: usize = 20;
/// Bytes of the file before its payload.
const HEADER: usize = DESCRIBED + 4;

/// A run that has loaded a day of traces and written a segment.
fn begun() -> Vec<u8> {
    let facts = BTreeMap::from([("the server".to_owned(), "http://a".to_owned())]);
    let mut checkpoint = Checkpoint::begin(RunIdentity::of(facts), "run".to_owned(), 1);
    let boundary = |day| Boundary {
        project_id: ByteBuf::from("project"),
        observation_type: ByteBuf::from("SPAN"),
        day,
        id: Some(ByteBuf::from("observation")),
    };
    checkpoint.segments = Some(vec![Segment {
        number: 0,
        source: Source::Observations,
        from: Some(boundary(19_875)),
        to: Some(boundary(19_876)),
        rows: 250_000,
    }]);
    checkpoint.days.insert(19_875, (12, 10));
    checkpoint.done.insert(0, SegmentCounts::default());
    checkpoint.superseded = Some(1);
    let mut file = checkpoint.encode().expect("a checkpoint can be written");
    file[DESCRIBED] = 1;
    file
}

fuzz_target!(init: seeds::write(&[("begun", begun())]), |bytes: &[u8]| {
    let mut file = bytes.to_vec();
    // No fuzzer guesses a checksum: put a right one in its place. The first byte of the checksum
    // says whether the file is to be tried as it is.
    if file.len() >= HEADER && file[DESCRIBED] != 0 {
        let length = (file.len() - HEADER) as u64;
        file[12..DESCRIBED].copy_from_slice(&length.to_le_bytes());
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&file[..DESCRIBED]);
        hasher.update(&file[HEADER..]);
        file[DESCRIBED..HEADER].copy_from_slice(&hasher.finalize().to_le_bytes());
    }
    let Ok(checkpoint) = Checkpoint::decode(&file) else {
        return;
    };
    let encoded = checkpoint.encode().expect("a checkpoint can be written");
    let again = Checkpoint::decode(&encoded).expect("what was written can be read");
    assert_eq!(again, checkpoint);
});
