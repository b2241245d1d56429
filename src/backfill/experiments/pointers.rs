//! Maps spans to the items that point at them.

use std::collections::BTreeMap;

/// The winning item for each span that items point at, by span id.
pub(super) type Pointers = BTreeMap<Vec<u8>, Pointer>;

/// An item that points at a span. The greatest wins.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pointer {
    /// When it was created, in microseconds since 1970. The latest item wins.
    pub(super) created_at: i64,
    /// `id`: of items created at the same time, the greatest wins.
    pub(super) id: Vec<u8>,
    /// Its key in the store.
    pub(super) item: Vec<u8>,
    /// Whether live spans carry it. If so, spans below it get no item.
    pub(super) is_left: bool,
}
