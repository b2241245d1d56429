//! The combined status of a month that several shards process.

use std::collections::BTreeMap;
use std::fmt;

use indicatif::HumanCount;
use serde::Serialize;

use super::partition_status::{PartitionStatus, State};
use crate::partition::{Partition, Shard};
use crate::state::directory::PartitionDir;

/// The status of a month whose days are divided among several processes, as far as their state is in
/// these directories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct ShardedMonth {
    /// The partition, `YYYYMM`.
    partition: String,
    /// The ClickHouse shard on which it is done, where it is one of a cluster.
    cluster_shard: Option<u32>,
    /// How many shards it has.
    shards: u16,
    /// Finished shards, as `3/8`.
    finished: Vec<String>,
    /// Shards with an active process.
    running: Vec<String>,
    /// Unfinished shards without an active process on this machine.
    unfinished: Vec<String>,
    /// Shards without state here: not started, or started elsewhere.
    not_here: Vec<String>,
    /// Events that the server acknowledged, root spans included.
    events_inserted: u64,
}

impl ShardedMonth {
    /// The months with shards among these runs, except dry runs.
    pub(super) fn all<'a>(
        runs: impl Iterator<Item = (&'a PartitionDir, &'a PartitionStatus)>,
    ) -> Vec<Self> {
        // Each shard of a ClickHouse cluster has its own runs of a month.
        type Key = (Partition, Option<u32>, u16);
        let mut months: BTreeMap<Key, BTreeMap<Shard, &PartitionStatus>> = BTreeMap::new();
        for (directory, status) in runs {
            if let Some(shard) = directory.share.shard
                && !directory.dry_run
            {
                let cluster_shard = directory.cluster_shard();
                let month = months.entry((directory.share.partition, cluster_shard, shard.of()));
                month.or_default().insert(shard, status);
            }
        }
        let months = months.into_iter();
        months
            .map(|(key, shards)| Self::new(key, &shards))
            .collect()
    }

    fn new(
        (partition, cluster_shard, of): (Partition, Option<u32>, u16),
        shards: &BTreeMap<Shard, &PartitionStatus>,
    ) -> Self {
        let mut month = Self {
            partition: partition.to_string(),
            cluster_shard,
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
        let on_shard = self.cluster_shard.map(|shard| format!(" on {shard}"));
        let on_shard = on_shard.unwrap_or_default();
        write!(
            f,
            "{partition}{on_shard}: {finished} of {shards} shards finished, {} events",
            HumanCount(self.events_inserted)
        )?;
        if finished == usize::from(shards) {
            return write!(
                f,
                "; check the whole month with `events-backfill verify --partition {partition}`, with the \
                 options of the run"
            );
        }
        for (what, shards) in [
            ("running", &self.running),
            ("unfinished, continue with --resume", &self.unfinished),
            ("not started, or state elsewhere", &self.not_here),
        ] {
            if !shards.is_empty() {
                write!(f, "; {what}: {}", shards.join(", "))?;
            }
        }
        Ok(())
    }
}
