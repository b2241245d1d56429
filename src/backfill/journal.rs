//! What of a month's work is done, here and on disk: the one is never ahead of the other.

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

/// The checkpoint, as it is on disk.
pub(super) struct Journal {
    checkpoint: Checkpoint,
    /// Where it is kept; a dry run keeps none.
    path: Option<PathBuf>,
    changes: Arc<ChangeCounts>,
}

impl Journal {
    /// Goes on from a checkpoint. A dry run writes nothing down.
    pub(super) fn new(checkpoint: Checkpoint, state: &StateDir, dry_run: bool) -> Self {
        Self {
            path: (!dry_run).then(|| state.checkpoint()),
            changes: Arc::new(ChangeCounts::of(&checkpoint)),
            checkpoint,
        }
    }

    /// What is done.
    pub(super) fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// What becomes of the traces that change meanwhile; each commit writes it down.
    pub(super) fn changes(&self) -> Arc<ChangeCounts> {
        Arc::clone(&self.changes)
    }

    /// Writes a change down, and makes it. What cannot be written down is not made: it will be done
    /// again.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::error::Kind) where the file system does not let it.
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

    /// The same, once what the checkpoint then says of the store outlasts a loss of power.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::error::Kind) where the store or the file system does not let it.
    pub(super) fn commit_with(
        &mut self,
        store: &TraceStore,
        change: impl FnOnce(&mut Checkpoint),
    ) -> Result<(), Error> {
        store.sync().map_err(WorkError::from)?;
        self.commit(change)
    }
}
