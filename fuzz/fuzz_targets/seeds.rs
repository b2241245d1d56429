//! What fuzzing begins with: inputs that are right.

use std::fs;
use std::path::Path;

/// Writes inputs into the corpus: the first directory that libFuzzer is given. There is none where a
/// single input is tried again.
pub fn write(inputs: &[(&str, Vec<u8>)]) {
    let mut arguments = std::env::args().skip(1);
    let Some(corpus) = arguments.find(|argument| Path::new(argument).is_dir()) else {
        return;
    };
    for (name, bytes) in inputs {
        fs::write(Path::new(&corpus).join(name), bytes).expect("the corpus can be written");
    }
}
