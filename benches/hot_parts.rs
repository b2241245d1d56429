//! The three parts that every observation passes through, without a server: walking and splicing a
//! block, looking traces up, enriching.
//!
//! ```sh
//! cargo bench --bench hot_parts               # all, compared with the last time
//! cargo bench --bench hot_parts -- enrich     # those whose name contains a word
//! # To compare: -- --save-baseline before, then change something, then -- --baseline before
//! ```
//!
//! Figures are per block of 8,192 observations, as many as the program reads at once.

// A test or a benchmark ends by a panic, and its numbers are small.
#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::expect_used,
    clippy::missing_docs_in_private_items,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub
)]

mod support;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use events_backfill::internals::{
    Block, BlockReader, BufferPool, Day, Enricher, Reach, SetAside, Unknown,
};

use support::{BLOCK_ROWS, FIRST_DAY, Payload, mapping, native_block, store_of_traces, trace_key};

/// Far more than any block here takes.
const MAX_BYTES: usize = 1 << 30;

/// Bytes of one read from the network, about.
const CHUNK_BYTES: usize = 64 * 1024;

const TRACES_PER_DAY: usize = 100_000;
const TRACES_OF_A_LARGE_DAY: usize = 3_300_000;

fn read_block(pool: &BufferPool, bytes: &[u8]) -> Block {
    let mut reader = BlockReader::new(MAX_BYTES, pool);
    for chunk in bytes.chunks(CHUNK_BYTES) {
        reader.push(chunk);
        if let Some(block) = reader.next_block().expect("the block is valid") {
            return block;
        }
    }
    panic!("the block ends early");
}

/// From the chunks that arrive to the slice that is sent on.
fn walk_and_splice(criterion: &mut Criterion) {
    let mapping = mapping();
    let pool = BufferPool::new(MAX_BYTES, MAX_BYTES);
    let mut group = criterion.benchmark_group("walk and splice");
    for payload in Payload::ALL {
        let bytes = native_block(&mapping, payload, TRACES_PER_DAY);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_with_input(
            BenchmarkId::from_parameter(payload.name()),
            &bytes,
            |bencher, bytes| {
                bencher.iter(|| {
                    let block = read_block(&pool, bytes);
                    black_box(block.pieces(0..mapping.pass_through.len()))
                });
            },
        );
    }
    group.finish();
}

/// A block's worth of distinct traces, in the order of their keys, from a store in the page cache.
fn look_up(criterion: &mut Criterion) {
    let (_directory, store) = store_of_traces(3, TRACES_PER_DAY);
    let mut keys: Vec<Vec<u8>> = (0..BLOCK_ROWS)
        .map(|row| trace_key(support::trace_of_row(row, TRACES_PER_DAY)))
        .collect();
    keys.sort_unstable();
    keys.dedup();
    let absent: Vec<Vec<u8>> = (0..keys.len())
        .map(|number| trace_key(TRACES_PER_DAY * 100 + number))
        .collect();

    let mut group = criterion.benchmark_group("look-up");
    group.throughput(Throughput::Elements(keys.len() as u64));
    for (name, keys, day) in [
        ("on its own day", &keys, FIRST_DAY),
        ("on the next day", &keys, FIRST_DAY + 1),
        ("not there", &absent, FIRST_DAY),
    ] {
        let asked: Vec<(Day, &[u8])> = keys.iter().map(|key| (day, key.as_slice())).collect();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let found = store.look_up(&asked, Reach::AllDays, MAX_BYTES);
                black_box(found.expect("the store answers"))
            });
        });
    }
    group.finish();
}

/// Traces that have an observation each, from a day of a month of 100 million traces: as many as wait
/// for a look-up at once, and as many as a segment has.
fn look_up_in_a_large_day(criterion: &mut Criterion) {
    let (_directory, store) = store_of_traces(1, TRACES_OF_A_LARGE_DAY);
    let mut group = criterion.benchmark_group("look-up in a large day");
    group.sample_size(10);
    for count in [12_000, 250_000] {
        let mut random = fastrand::Rng::with_seed(7);
        let mut keys: Vec<Vec<u8>> = (0..count)
            .map(|_| trace_key(random.usize(..TRACES_OF_A_LARGE_DAY)))
            .collect();
        keys.sort_unstable();
        keys.dedup();
        let asked: Vec<(Day, &[u8])> = keys.iter().map(|key| (FIRST_DAY, key.as_slice())).collect();
        group.throughput(Throughput::Elements(keys.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| {
                let found = store.look_up(&asked, Reach::AllDays, MAX_BYTES);
                black_box(found.expect("the store answers"))
            });
        });
    }
    group.finish();
}

/// From a block of observations to a block of events, look-ups included.
fn enrich(criterion: &mut Criterion) {
    let mapping = mapping();
    let (_directory, store) = store_of_traces(1, TRACES_PER_DAY);
    let store = std::sync::Arc::new(store);
    let pool = BufferPool::new(MAX_BYTES, MAX_BYTES);
    let mut group = criterion.benchmark_group("enrich");
    group.throughput(Throughput::Elements(BLOCK_ROWS as u64));
    for (name, traces) in [
        ("a trace for each", TRACES_PER_DAY),
        ("a trace for ten", BLOCK_ROWS / 10),
    ] {
        let mut blocks = vec![read_block(
            &pool,
            &native_block(&mapping, Payload::Typical, traces),
        )];
        let enricher = Enricher::new(mapping.clone(), store.clone(), pool.clone());
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut set_aside = SetAside::default();
                let enriched = enricher
                    .enrich(
                        &mut blocks,
                        Unknown::WithoutTrace,
                        &mut set_aside,
                        MAX_BYTES,
                    )
                    .expect("the block can be enriched");
                assert_eq!(enriched[0].without_trace, 0);
                black_box(enriched)
            });
        });
    }
    group.finish();
}

criterion_group!(
    hot_parts,
    walk_and_splice,
    look_up,
    look_up_in_a_large_day,
    enrich
);
criterion_main!(hot_parts);
