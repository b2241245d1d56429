//! Trace attributes on disk: a RocksDB with one column family per trace day.
//!
//! An observation's trace nearly always started on the observation's own day,
//! so a look-up asks that day first, then its neighbours, then the rest; a
//! filter per file makes the questions to the wrong days cheap, as long as the
//! filters of all days stay in the cache ([`Reach`]). (One family
//! of overlapping files was measured 25 times slower.)
//!
//! The same trace id can stand on two days, when a later version of the trace
//! has another timestamp. Which one counts is settled while loading
//! ([`TraceStore::settle_moved_traces`]) and kept in a family of its own, so
//! that a look-up can stop at the first day that answers.

mod error;
mod families;
mod items;
pub mod key;
mod load;
mod lookup;
mod options;
mod read_ahead;
mod record;
mod remote;
mod settle;
mod store;
mod target_rows;
mod wanted;

pub(crate) use error::StoreError;
pub(crate) use families::Against;
pub(crate) use items::{ExperimentWriter, FoundItems, ItemRecord};
pub use load::{DayWriter, SeenTraces};
pub(crate) use lookup::Found;
pub use lookup::Reach;
pub(crate) use record::TEXTS;
pub use record::TraceRecord;
pub(crate) use remote::{About, RemoteWriter};
pub use store::TraceStore;
pub(crate) use store::disk_bytes;
pub(crate) use target_rows::{
    HASH_BYTES, HashKey, ROW_KEY_BYTES, Root, RowKey, SortedWriter, TargetRow, Version,
};
pub(crate) use wanted::{WantedDay, WantedRow};
