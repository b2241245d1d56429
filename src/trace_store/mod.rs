//! Trace attributes on disk: a RocksDB with one column family per trace day.
//!
//! Nearly every trace starts on the same day as its observations, so a look-up tries that day
//! first, then its neighbours, then the rest. Filters make look-ups on wrong days cheap while the
//! cache holds the filters of all days ([`Reach`]). (One family of overlapping files measured 25
//! times slower.)
//!
//! A trace id can occur on two days if a later version has another timestamp. Which version wins is
//! settled while loading ([`TraceStore::settle_moved_traces`]) and stored in its own family, so a
//! look-up can stop at the first day with an answer.

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
