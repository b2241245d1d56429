//! Everything that talks to ClickHouse: the connection, its errors and which of them to retry,
//! inserts, and the server's information about its tables.

mod body;
mod connection;
mod distributed;
mod error;
mod heard_out;
mod insert;
mod options;
pub mod quoting;
mod replicas;
pub(crate) mod retry;
mod schema;
mod servers;
mod settings;
mod settle;
mod sizes;
mod statement;
mod tls;

pub use connection::Connection;
pub use connection::NativeStream;
pub(crate) use error::RequestError;
pub(crate) use insert::{InsertRequest, InsertSelect, OpenInsert};
pub use options::{Compression, ConnectionOptions, Password};
pub(crate) use schema::{PartitionSize, PartitionState, ServerInfo, now_in_microseconds};
pub use schema::{TableColumn, TableInfo};
pub(crate) use sizes::{ColumnSizes, StoredBytes, TableName, TableSize};
pub use statement::Statement;
pub(crate) use statement::{ON_DISK_FROM_BYTES, TABLE_TIMEOUT};
pub use tls::Trust;
