//! Everything that talks to ClickHouse: the connection, its errors and which of
//! them may be retried, inserts, and what the server says about its tables.

mod body;
mod connection;
mod error;
mod insert;
mod options;
pub mod quoting;
pub mod retry;
mod schema;
mod settings;
mod settle;
mod sizes;
mod tls;

pub use connection::{Connection, NativeStream, ON_DISK_FROM_BYTES, TABLE_TIMEOUT};
pub use error::RequestError;
pub use insert::InsertRequest;
pub use options::{Compression, ConnectionOptions, Password};
pub use schema::{PartitionSize, Parts, ServerInfo, TableColumn, TableInfo, now_in_microseconds};
pub use sizes::{ColumnSizes, Disk, StoredBytes, TableName, TableSize};
pub use tls::Trust;
