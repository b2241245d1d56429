//! Whatever ClickHouse sends is whole blocks or an error, and the same ones however the bytes are
//! cut into chunks.

#![no_main]

use events_backfill::internals::{
    Block, BlockReader, BufferPool, put_block_header, put_column_header, put_string,
};
use libfuzzer_sys::fuzz_target;

mod seeds;
#[path = "../../tests/support/well_formed.rs"]
mod well_formed;

/// Most bytes of a block. Larger ones are refused, which is faster than reading them.
const MAX_BLOCK_BYTES: usize = 1024 * 1024;

/// The blocks of a stream, and whether all of its bytes are blocks.
fn read(bytes: &[u8], chunk: usize) -> (Vec<Block>, bool) {
    let pool = BufferPool::new(MAX_BLOCK_BYTES, MAX_BLOCK_BYTES);
    let mut reader = BlockReader::new(MAX_BLOCK_BYTES, &pool);
    let mut blocks = Vec::new();
    for chunk in bytes.chunks(chunk) {
        reader.push(chunk);
        loop {
            match reader.next_block() {
                Ok(Some(block)) => blocks.push(block),
                Ok(None) => break,
                Err(_) => return (blocks, false),
            }
        }
    }
    let is_whole = reader.finish().is_ok();
    (blocks, is_whole)
}

/// Two blocks, to be read in chunks of seven bytes.
fn texts() -> Vec<u8> {
    let mut bytes = vec![7];
    for rows in [2, 1] {
        put_block_header(&mut bytes, 3, rows);
        put_column_header(&mut bytes, "id", "String");
        (0..rows).for_each(|_| put_string(&mut bytes, b"an id"));
        put_column_header(&mut bytes, "version", "Nullable(String)");
        bytes.extend(vec![1; rows]);
        (0..rows).for_each(|_| put_string(&mut bytes, b""));
        put_column_header(&mut bytes, "start_time", "DateTime64(6)");
        bytes.extend(vec![0; 8 * rows]);
    }
    bytes
}

/// A block, to be read byte by byte.
fn nested() -> Vec<u8> {
    let mut bytes = vec![1];
    put_block_header(&mut bytes, 2, 1);
    put_column_header(&mut bytes, "metadata", "Map(String, Array(UInt8))");
    bytes.extend(1_u64.to_le_bytes());
    put_string(&mut bytes, b"key");
    bytes.extend(2_u64.to_le_bytes());
    bytes.extend([1, 2]);
    put_column_header(
        &mut bytes,
        "pair",
        "Tuple(a FixedString(2), b Array(String))",
    );
    bytes.extend(*b"ab");
    bytes.extend(1_u64.to_le_bytes());
    put_string(&mut bytes, b"in a list");
    bytes
}

// The first byte says how large the chunks are.
fuzz_target!(init: seeds::write(&[("texts", texts()), ("nested", nested())]), |input: &[u8]| {
    let Some((&chunk, bytes)) = input.split_first() else {
        return;
    };
    let (blocks, is_whole) = read(bytes, bytes.len().max(1));
    for block in &blocks {
        well_formed::assert_well_formed(block);
    }
    let (in_chunks, is_whole_in_chunks) = read(bytes, usize::from(chunk).max(1));
    assert_eq!(is_whole, is_whole_in_chunks);
    let contents = |blocks: &[Block]| -> Vec<Vec<u8>> {
        blocks.iter().map(|block| block.bytes.to_vec()).collect()
    };
    assert_eq!(contents(&blocks), contents(&in_chunks));
});
