//! ClickHouse's columnar `Native` format: walk a block, slice it, build columns.
//!
//! A block holds its numbers of columns and rows (LEB128), then for each column its name, its type
//! (each a LEB128 length and text) and its values, laid out as [`types::Layout`] describes. Over
//! HTTP without `client_protocol_version` it holds nothing else. This module knows types, but
//! neither events nor servers.

mod column;
mod error;
mod reader;
mod rows;
pub(crate) mod types;
mod writer;

pub use column::{ArrayCursor, FixedCursor, NullableStringCursor, StringCursor};
pub use error::NativeError;
pub(crate) use reader::held_bytes;
pub use reader::{Block, BlockReader};
pub use rows::Share;
pub use types::Layout;
pub(crate) use types::{DataType, TypeError};
pub use writer::{StringArrayWriter, put_block_header, put_column_header, put_string, put_varint};
