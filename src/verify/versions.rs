//! Observations with versions of several types or days. `FINAL` shows one row per type and day, but
//! only the latest of all wins, in whatever month.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use serde_bytes::ByteBuf;

use super::origin::OBSERVATION;
use super::rows::{ProjectHash, Versions};
use super::scope::{Scope, Share, Superseded, hash, observation_hash, version_hash};
use super::statements::Statements;
use super::traces::IDS_PER_STATEMENT;
use crate::clickhouse::quoting;
use crate::partition::Day;

/// Maximum observations with several versions in memory, at forty bytes each. A month with more is
/// compared share by share.
pub(super) const MOST_VERSIONS: usize = 2_000_000;

/// The observations with several versions that have a row in the month.
#[derive(Debug, Default)]
pub(super) struct Superseding {
    projects: HashMap<ByteBuf, u64>,
    /// Ordered by project.
    versions: Vec<Versions>,
}

impl Superseding {
    /// Sorts the versions of all projects.
    pub(super) fn new(projects: Vec<ProjectHash>, mut versions: Vec<Versions>) -> Self {
        versions.sort_unstable();
        let projects = projects.into_iter().map(|row| (row.project, row.hash));
        Self {
            projects: projects.collect(),
            versions,
        }
    }

    /// Those relevant to a scope, or `None` if they are so many that it must be divided.
    pub(super) fn of(&self, scope: &Scope) -> Option<Superseded> {
        let mut of_scope = Superseded::default();
        let hashes = scope.projects.iter();
        let hashes = hashes.filter_map(|project| self.projects.get(project));
        for &project in hashes {
            let first = self.versions.partition_point(|one| one.project < project);
            let of_project = self.versions.iter().skip(first);
            let of_project = of_project.take_while(|one| one.project == project);
            for one in of_project {
                let may_be_there = one.first <= *scope.days.end()
                    && one.last >= *scope.days.start()
                    && scope.share.contains(one.trace);
                if may_be_there {
                    of_scope.observations.push(one.observation);
                    of_scope.counting.push(one.counting);
                }
            }
        }
        let are_too_many =
            of_scope.observations.len() > IDS_PER_STATEMENT && scope.share.is_divisible();
        (!are_too_many).then_some(of_scope)
    }
}

impl Statements {
    /// Hashes of the projects with observations in the month: [`ProjectHash`]es.
    pub(super) fn project_hashes(&self) -> String {
        let project = format!("CAST({OBSERVATION}.project_id, 'String')");
        format!(
            "SELECT {project} AS project, cityHash64(project) AS hash FROM {} AS {OBSERVATION} \
             WHERE {OBSERVATION}._partition_id = {} GROUP BY project",
            self.observations,
            quoting::string(&self.partition_id)
        )
    }

    /// Number of the month's observations with versions of several types or days: a
    /// [`Number`](super::rows::Number).
    pub(super) fn count_superseding(&self, month: &RangeInclusive<Day>) -> String {
        let all = Share { of: 1, number: 0 };
        let observations = self.superseding(month, all, None);
        format!("SELECT count() AS number FROM ({observations})")
    }

    /// The month's observations with versions of several types or days, up to a limit:
    /// [`Versions`]. Groups by hashes, which take a fraction of the ids' memory.
    pub(super) fn superseding(
        &self,
        month: &RangeInclusive<Day>,
        share: Share,
        most: Option<usize>,
    ) -> String {
        let trace = format!("{OBSERVATION}.trace_id");
        let day = format!("toUInt16(toDate({OBSERVATION}.start_time))");
        let place = format!("cityHash64(CAST({OBSERVATION}.type, 'String'), {day})");
        let limit = most.map_or_else(String::new, |most| format!(" LIMIT {most}"));
        format!(
            "SELECT any(cityHash64(CAST({OBSERVATION}.project_id, 'String'))) AS project, \
             any({}) AS trace, {} AS observation, \
             argMax({}, ({OBSERVATION}.event_ts, {day})) AS counting, \
             min({day}) AS first, max({day}) AS last FROM {observations} AS {OBSERVATION} \
             WHERE {OBSERVATION}.project_id IN (SELECT DISTINCT {OBSERVATION}.project_id \
             FROM {observations} AS {OBSERVATION} WHERE {OBSERVATION}._partition_id = {}){} \
             GROUP BY observation \
             HAVING min({place}) != max({place}) AND max({day} BETWEEN {} AND {}){limit}",
            hash(&trace),
            observation_hash(),
            version_hash(),
            quoting::string(&self.partition_id),
            share.condition(&trace),
            month.start(),
            month.end(),
            observations = self.observations,
        )
    }
}
