//! Progress of a month, in memory and on disk. Memory is never ahead of the disk.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::error::WorkError;
use super::load::trace_changes::ChangeCounts;
use crate::error::Error;
use crate::partition::seconds_since_1970;
use crate::state::checkpoint::Checkpoint;
use crate::state::directory::StateDir;
use crate::trace_store::TraceStore;

/// The checkpoint, as last written.
pub(super) struct Journal {
    checkpoint: Checkpoint,
    /// Its path, or `None` for a dry run.
    path: Option<PathBuf>,
    changes: Arc<ChangeCounts>,
}

impl Journal {
    /// Continues from a checkpoint. A dry run writes nothing.
    pub(super) fn new(checkpoint: Checkpoint, state: &StateDir, dry_run: bool) -> Self {
        Self {
            path: (!dry_run).then(|| state.checkpoint()),
            changes: Arc::new(ChangeCounts::of(&checkpoint)),
            checkpoint,
        }
    }

    /// The current checkpoint.
    pub(super) fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Counts of trace changes; each commit saves them.
    pub(super) fn changes(&self) -> Arc<ChangeCounts> {
        Arc::clone(&self.changes)
    }

    /// Saves a change, then applies it. If saving fails, the change is not applied and the work
    /// will be repeated.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::error::Kind) if the checkpoint cannot be written.
    pub(super) fn commit(&mut self, change: impl FnOnce(&mut Checkpoint)) -> Result<(), Error> {
        let mut next = self.checkpoint.clone();
        change(&mut next);
        next.saved_at = seconds_since_1970();
        next.traces_reloaded = self.changes.reloaded.load(Ordering::Relaxed);
        next.traces_changed = self.changes.after_writing.load(Ordering::Relaxed);
        if let Some(path) = &self.path {
            next.keep(path)?;
        }
        self.checkpoint = next;
        Ok(())
    }

    /// Like `commit`, after making durable what the checkpoint says of the store.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::error::Kind) if the store or the checkpoint cannot be written.
    pub(super) fn commit_with(
        &mut self,
        store: &TraceStore,
        change: impl FnOnce(&mut Checkpoint),
    ) -> Result<(), Error> {
        store.sync().map_err(WorkError::from)?;
        self.commit(change)
    }
}
