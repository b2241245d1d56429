//! Everything that talks to ClickHouse: the connection, its errors and which of
//! them may be retried, inserts, and what the server says about its tables.

mod connection;
mod error;
mod insert;
pub mod quoting;
pub mod retry;
mod schema;
mod settings;
mod sizes;
mod tls;

pub use connection::{
    Compression, Connection, ConnectionOptions, NativeStream, ON_DISK_FROM_BYTES, Password,
    TABLE_TIMEOUT,
};
pub use error::RequestError;
pub use insert::InsertRequest;
pub use schema::{PartitionSize, Parts, ServerInfo, TableColumn, TableInfo, now_in_microseconds};
pub use sizes::{ColumnSizes, Disk, StoredBytes, TableName, TableSize};
pub use tls::Trust;
