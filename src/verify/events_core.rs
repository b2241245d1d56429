//! The table that a view fills from the target, as used in statements.

use super::observation_columns::OwnColumn;
use super::origin::EVENT;

/// The table that a view fills from the target.
#[derive(Debug, Clone)]
pub(super) struct Core {
    /// The view's SELECT over the target.
    pub(super) select: String,
    /// The table, quoted.
    pub(super) name: String,
    /// `database.table`
    pub label: String,
    pub(super) columns: Vec<OwnColumn>,
}

impl Core {
    /// The table expression for statements that read all its rows.
    pub(super) fn table(&self) -> String {
        format!("{} AS {EVENT}", self.name)
    }
}
