//! Whatever a checkpoint's file holds is a checkpoint or an error, also where its checksum is right,
//! and a checkpoint that is written again is the same checkpoint.

#![no_main]

use events_backfill::internals::Checkpoint;
use libfuzzer_sys::fuzz_target;

#[path = "../../tests/support/samples.rs"]
#[allow(dead_code)]
mod samples;
mod seeds;

/// Bytes of the file that its checksum, the end of the header, is made of: magic, version, length.
const DESCRIBED: usize = 20;
/// Bytes of the file before its payload.
const HEADER: usize = DESCRIBED + 4;

fn begun() -> Vec<u8> {
    let checkpoint = samples::checkpoint(1);
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
