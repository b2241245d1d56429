//! Whatever the trace store holds under a key is a record or an error, and a record that is written
//! again is the same record.

#![no_main]

use events_backfill::internals::TraceRecord;
use libfuzzer_sys::fuzz_target;

#[path = "../../tests/support/samples.rs"]
#[allow(dead_code)]
mod samples;
mod seeds;

fn full() -> Vec<u8> {
    encoded(&samples::full_record())
}

fn deleted() -> Vec<u8> {
    encoded(&TraceRecord::deleted(1_717_200_000_000_000, 19_875))
}

fn encoded(record: &TraceRecord) -> Vec<u8> {
    let mut bytes = Vec::new();
    record.encode(&mut bytes).expect("a record can be written");
    bytes
}

fuzz_target!(init: seeds::write(&[("full", full()), ("deleted", deleted())]), |bytes: &[u8]| {
    let Ok(record) = TraceRecord::decode(bytes) else {
        return;
    };
    let mut encoded = Vec::new();
    record
        .encode(&mut encoded)
        .expect("a record can be written");
    let again = TraceRecord::decode(&encoded).expect("what was written can be read");
    assert_eq!(again, record);
});
