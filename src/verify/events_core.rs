//! The table that a view fills from the target, as statements call it.

use super::observation_columns::OwnColumn;
use super::origin::EVENT;

/// The table that a view fills from the target.
#[derive(Debug, Clone)]
pub(super) struct Core {
    /// What the view selects of the target.
    pub(super) select: String,
    /// The table, quoted.
    pub(super) name: String,
    /// `database.table`
    pub label: String,
    pub(super) columns: Vec<OwnColumn>,
}

impl Core {
    /// The table, as statements name it that read all its rows.
    pub(super) fn table(&self) -> String {
        format!("{} AS {EVENT}", self.name)
    }
}
