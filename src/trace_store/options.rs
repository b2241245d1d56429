//! All RocksDB configuration, with a reason for each option.

use rocksdb::{BlockBasedOptions, Cache, DBCompressionType, DataBlockIndexType, LogLevel, Options};

use crate::memory::open_files;

/// Maximum SST file size. Filters are built in memory per file, so this bounds them.
pub(super) const TARGET_FILE_BYTES: u64 = 64 * 1024 * 1024;
/// Maximum entries per SST file. Building a ribbon filter takes about 30 bytes per entry, and one
/// file per key form may be open.
pub(super) const TARGET_FILE_ENTRIES: u64 = 500_000;
/// Data block size before compression. Larger blocks compress better; smaller ones read less per
/// look-up.
const BLOCK_BYTES: usize = 4 * 1024;
/// Ribbon filter quality, expressed as Bloom filter bits per key: 1 % of look-ups in a wrong file
/// read a block.
const FILTER_BITS: f64 = 10.0;

/// Maximum size of the write-ahead logs together. A family that is seldom written would otherwise keep all logs
/// since its last flush.
const LOG_BYTES: u64 = 8 * 1024 * 1024;
/// Disk reserved for the manifest at once; RocksDB's default is 4 MiB.
const MANIFEST_BYTES: usize = 256 * 1024;

/// Database options.
pub(super) fn database() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // Most data arrives in ingested files; results found during the run go through memtables.
    options.set_max_background_jobs(2);
    options.set_max_total_wal_size(LOG_BYTES);
    options.set_manifest_preallocation_size(MANIFEST_BYTES);
    // The block cache accounts for table readers; this bounds the file handles.
    options.set_max_open_files(open_files::of_store());
    // The state directory is for the operator: keep RocksDB's logs to errors.
    options.set_log_level(LogLevel::Error);
    options.set_keep_log_file_num(1);
    options.set_stats_dump_period_sec(0);
    options
}

/// Options for every column family. Families made from the same result share its cache.
pub(super) fn family(cache_bytes: usize) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(cache_bytes));
    table.set_block_size(BLOCK_BYTES);
    // Ribbon: the quality of a Bloom filter in 30 % less memory.
    table.set_ribbon_filter(FILTER_BITS);
    // Without these two, indexes and filters live outside the cache, unbounded.
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    // Point look-ups only: a hash index avoids the binary search in each block.
    table.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
    table.set_format_version(5);

    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    // Files are written once, in order and without overlap: nothing to compact.
    options.set_disable_auto_compactions(true);
    options.set_write_buffer_size(8 * 1024 * 1024);
    options.set_max_write_buffer_number(2);
    options
}

/// Options for families keyed by hashes and read in key order. No filter, since absent keys are
/// rarely requested; no compression, since hashes do not compress.
pub(super) fn walked(cache_bytes: usize) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(cache_bytes / 8));
    table.set_block_size(BLOCK_BYTES);
    table.set_cache_index_and_filter_blocks(true);
    table.set_format_version(5);

    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::None);
    // Reading a day again makes files overlap; compact them.
    options.set_write_buffer_size(4 * 1024 * 1024);
    options.set_max_write_buffer_number(2);
    options
}

/// [`family`], for unordered writes through memtables: overlapping files are compacted.
pub(super) fn compacted(family: &Options) -> Options {
    let mut options = family.clone();
    options.set_disable_auto_compactions(false);
    options.set_write_buffer_size(4 * 1024 * 1024);
    options
}
