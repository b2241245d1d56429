//! Which span of a trace which item points at.

use std::collections::BTreeMap;

/// The item that each span of a trace belongs to which an item points at: the id of the span
/// and the key of the item.
pub(super) type Pointers = BTreeMap<Vec<u8>, Pointer>;

/// An item that points at a span. The greatest counts.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pointer {
    /// When it was created, in microseconds since 1970: of several items the latest counts.
    pub(super) created_at: i64,
    /// `id`: of several that were created at once, the greatest counts.
    pub(super) id: Vec<u8>,
    /// Its key in the store.
    pub(super) item: Vec<u8>,
    /// Whether live spans carry it: then what lies below has no item of ours.
    pub(super) is_left: bool,
}
