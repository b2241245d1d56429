//! Everything that talks to ClickHouse: the connection, its errors and which of
//! them may be retried, inserts, and what the server says about its tables.

mod connection;
mod error;
mod insert;
mod schema;
pub mod sql;
mod tls;

pub use connection::{Compression, Connection, ConnectionOptions, NativeStream, Password};
pub use error::RequestError;
pub use insert::InsertRequest;
pub use schema::{PartitionSize, ServerInfo, TableColumn, TableInfo};
