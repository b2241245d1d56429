//! The shards of a month, seen as the one run that they are.

use std::collections::BTreeMap;
use std::fmt;

use indicatif::HumanCount;
use serde::Serialize;

use super::partition_status::{PartitionStatus, State};
use crate::partition::{Partition, Shard};
use crate::state::directory::PartitionDir;

/// A month whose days several processes do, as far as their state is at hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct ShardedMonth {
    /// The partition, `YYYYMM`.
    partition: String,
    /// How many shards it has.
    shards: u16,
    /// Shards that are finished, as `3/8`.
    finished: Vec<String>,
    /// Shards at which a process is.
    running: Vec<String>,
    /// Shards that have state, are not finished, and at which no process is that this one can see.
    unfinished: Vec<String>,
    /// Shards without state here: not begun, or begun elsewhere.
    not_here: Vec<String>,
    /// Rows the server acknowledged, root spans included.
    events_inserted: u64,
}

impl ShardedMonth {
    /// The months of which there are shards among these runs, dry runs left out.
    pub(super) fn all<'a>(
        runs: impl Iterator<Item = (&'a PartitionDir, &'a PartitionStatus)>,
    ) -> Vec<Self> {
        let mut months: BTreeMap<(Partition, u16), BTreeMap<Shard, &PartitionStatus>> =
            BTreeMap::new();
        for (directory, status) in runs {
            if let Some(shard) = directory.share.shard
                && !directory.dry_run
            {
                let month = months.entry((directory.share.partition, shard.of()));
                month.or_default().insert(shard, status);
            }
        }
        let months = months.into_iter();
        months
            .map(|((partition, of), shards)| Self::new(partition, of, &shards))
            .collect()
    }

    fn new(partition: Partition, of: u16, shards: &BTreeMap<Shard, &PartitionStatus>) -> Self {
        let mut month = Self {
            partition: partition.to_string(),
            shards: of,
            finished: Vec::new(),
            running: Vec::new(),
            unfinished: Vec::new(),
            not_here: Vec::new(),
            events_inserted: 0,
        };
        for shard in Shard::all(of) {
            let status = shards.get(&shard);
            let list = match status.map(|status| status.state) {
                None => &mut month.not_here,
                Some(State::Finished) => &mut month.finished,
                Some(State::Running) => &mut month.running,
                Some(_) => &mut month.unfinished,
            };
            list.push(shard.to_string());
            let progress = status.and_then(|status| status.progress.as_ref());
            month.events_inserted += progress.map_or(0, |progress| {
                progress.events_inserted + progress.root_spans_inserted
            });
        }
        month
    }
}

impl fmt::Display for ShardedMonth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (partition, shards) = (&self.partition, self.shards);
        let finished = self.finished.len();
        write!(
            f,
            "{partition}: {finished} of {shards} shards finished, {} events",
            HumanCount(self.events_inserted)
        )?;
        if finished == usize::from(shards) {
            return write!(
                f,
                "; `events-backfill verify --partition {partition}` checks the whole month"
            );
        }
        for (what, shards) in [
            ("running", &self.running),
            (
                "unfinished, to be run again with --resume",
                &self.unfinished,
            ),
            ("not begun, or with their state elsewhere", &self.not_here),
        ] {
            if !shards.is_empty() {
                write!(f, "; {what}: {}", shards.join(", "))?;
            }
        }
        Ok(())
    }
}
