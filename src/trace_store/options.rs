//! The one place where RocksDB is configured, each option with its reason.

use rocksdb::{BlockBasedOptions, Cache, DBCompressionType, DataBlockIndexType, LogLevel, Options};

use crate::memory::open_files;

/// Bytes of an SST file at which the next one is begun. Filters are built in
/// memory per file, so this bounds them.
pub(super) const TARGET_FILE_BYTES: u64 = 64 * 1024 * 1024;
/// Entries of an SST file at which the next one is begun: a ribbon filter takes
/// some 30 bytes per entry while it is built, and a file of each form of keys
/// may be open.
pub(super) const TARGET_FILE_ENTRIES: u64 = 500_000;
/// Size of data blocks before compression. Larger ones compress better, smaller
/// ones read less per look-up.
const BLOCK_BYTES: usize = 4 * 1024;
/// Bits per key of a Bloom filter as good as the ribbon filter that is used:
/// 1 % of the look-ups in a wrong file read a block.
const FILTER_BITS: f64 = 10.0;

/// Options of the database as a whole.
pub(super) fn database() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // Most data arrives in ingested files; what is found out meanwhile goes through memtables.
    options.set_max_background_jobs(2);
    // Readers of open files are counted in the block cache; a bound for the handles.
    options.set_max_open_files(open_files::of_store());
    // The state directory is for the operator: no logs of RocksDB's own beyond errors.
    options.set_log_level(LogLevel::Error);
    options.set_keep_log_file_num(1);
    options.set_stats_dump_period_sec(0);
    options
}

/// Options of every column family. The cache is shared by all that are made from the result.
pub(super) fn family(cache_bytes: usize) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(cache_bytes));
    table.set_block_size(BLOCK_BYTES);
    // Ribbon: a Bloom filter's quality in 30 % less memory.
    table.set_ribbon_filter(FILTER_BITS);
    // Without these two, indexes and filters live outside of the cache, without a bound.
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    // Point look-ups only: a hash inside each block spares the binary search.
    table.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
    table.set_format_version(5);

    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    // Files are written once, in order, without overlap: nothing to compact.
    options.set_disable_auto_compactions(true);
    options.set_write_buffer_size(8 * 1024 * 1024);
    options.set_max_write_buffer_number(2);
    options
}

/// Options of a family whose keys are hashes and which is walked in their order: without filter,
/// since nobody asks for what is not there, and uncompressed, since hashes do not compress.
pub(super) fn walked(cache_bytes: usize) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(cache_bytes / 8));
    table.set_block_size(BLOCK_BYTES);
    table.set_cache_index_and_filter_blocks(true);
    table.set_format_version(5);

    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::None);
    // Files that overlap, since a day was read again, are merged.
    options.set_write_buffer_size(4 * 1024 * 1024);
    options.set_max_write_buffer_number(2);
    options
}

/// As [`family`], for what is written in no order, through memtables: files that overlap are
/// merged.
pub(super) fn compacted(family: &Options) -> Options {
    let mut options = family.clone();
    options.set_disable_auto_compactions(false);
    options.set_write_buffer_size(4 * 1024 * 1024);
    options
}
