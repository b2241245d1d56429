//! Asks ClickHouse for traces that are on none of the days that were loaded: in
//! whatever month they lie, many at a time, each of them once.
//!
//! Besides, there are traces that are on one of these days and on others too, perhaps
//! years away. ClickHouse finds them by a GROUP BY over the ids of the table, in which it
//! may use its disk.
//!
//! The Bloom filter index of `traces` lets one granule in a thousand pass for each id
//! that is asked for. So a question for one trace reads little, and many such questions
//! would read the table again and again; a question for thousands reads the ids
//! of the whole table, once.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use clickhouse::Row;
use serde::Deserialize;
use serde_bytes::ByteBuf;

use crate::backfill::block_stream::{BlockStream, catch_up};
use crate::backfill::error::WorkError;
use crate::backfill::load::versions::{TraceRows, TraceSource};
use crate::clickhouse::{ON_DISK_FROM_BYTES, Statement, TABLE_TIMEOUT, quoting};
use crate::inspect::statements::TRACE;
use crate::inspect::statements::trace_items;
use crate::mapping::SelectItem;
use crate::native::{Block, StringCursor};
use crate::partition::Day;
use crate::shutdown::Shutdown;
use crate::trace_store::{About, RemoteWriter, TraceRecord, TraceStore, key};

/// Bytes of ids that one question asks for. ClickHouse takes about three times as much for
/// the text of the query and the set it makes of it.
const QUESTION_BYTES: usize = 4 * 1024 * 1024;
/// Traces with versions far apart that one query gives.
pub(super) const MOVED_AT_ONCE: usize = 20_000;

/// The traces to ask for: project and id, by key.
#[derive(Debug, Default)]
pub(crate) struct Question {
    traces: BTreeMap<Vec<u8>, (Vec<u8>, Vec<u8>)>,
    bytes: usize,
    /// The days on which they are looked for, if not on all.
    days: Option<RangeInclusive<Day>>,
}

impl Question {
    /// Adds the traces of a block of rows that wait, unless they are missing and it is known that
    /// they are. The columns are those of the project's and of the trace's id.
    ///
    /// # Errors
    /// [`WorkError`] where the block is damaged, or the store fails.
    pub(crate) fn add(
        &mut self,
        block: &Block,
        (project_column, trace_column): (usize, usize),
        about: About,
        store: &TraceStore,
    ) -> Result<(), WorkError> {
        let mut projects = StringCursor::new(block.values(project_column));
        let mut ids = StringCursor::new(block.values(trace_column));
        let mut asked = BTreeMap::new();
        for _ in 0..block.rows {
            let (project, id) = (projects.next_value()?, ids.next_value()?);
            let mut encoded = Vec::new();
            key::encode(&mut encoded, project, id);
            if !self.traces.contains_key(&encoded) {
                asked.insert(encoded, (project, id));
            }
        }
        for (key, (project, id)) in asked {
            if about == About::Moved || !store.is_answered(&key)? {
                self.insert(key, project.to_vec(), id.to_vec());
            }
        }
        Ok(())
    }

    /// A question for these traces.
    pub(crate) fn of(traces: Vec<Moved>) -> Self {
        let mut question = Self::default();
        for Moved { project_id, id } in traces {
            let mut encoded = Vec::new();
            key::encode(&mut encoded, &project_id, &id);
            question.insert(encoded, project_id.into_vec(), id.into_vec());
        }
        question
    }

    /// The same question about some days only, which the primary key of `traces` finds.
    pub(crate) fn on_days(self, days: RangeInclusive<Day>) -> Self {
        Self {
            days: Some(days),
            ..self
        }
    }

    fn insert(&mut self, key: Vec<u8>, project: Vec<u8>, id: Vec<u8>) {
        self.bytes += project.len() + 2 * id.len() + 64;
        self.traces.insert(key, (project, id));
    }

    /// Takes those out that are on a day that is loaded, and keeps where a look-up finds them at once.
    /// The records that are held meanwhile take at most `max_bytes`, but for a single one.
    ///
    /// # Errors
    /// [`WorkError::Store`] where the store fails.
    pub(crate) fn settle_on_loaded_days(
        &mut self,
        store: &TraceStore,
        max_bytes: usize,
    ) -> Result<(), WorkError> {
        let keys: Vec<&[u8]> = self.traces.keys().map(Vec::as_slice).collect();
        let are_there = store.gather_from_all_days(&keys, max_bytes)?;
        let mut are_there = are_there.into_iter();
        self.traces.retain(|_, _| are_there.next() != Some(true));
        Ok(())
    }

    /// Whether it should be asked before more is added.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= QUESTION_BYTES
    }

    /// Whether there is nothing to ask.
    pub(crate) fn is_empty(&self) -> bool {
        self.traces.is_empty()
    }

    /// How many traces it asks for.
    pub(crate) fn len(&self) -> usize {
        self.traces.len()
    }

    fn condition(&self) -> String {
        let mut projects: Vec<&[u8]> = self.traces.values().map(|(p, _)| p.as_slice()).collect();
        projects.sort_unstable();
        projects.dedup();
        let list = |values: &mut dyn Iterator<Item = &[u8]>| {
            let values: Vec<String> = values.map(quoting::string).collect();
            values.join(", ")
        };
        let days = self.days.as_ref().map_or_else(String::new, |days| {
            format!(
                "toDate({TRACE}.timestamp) BETWEEN toDate({}) AND toDate({}) AND ",
                days.start(),
                days.end()
            )
        });
        format!(
            "{days}{TRACE}.project_id IN ({}) AND {TRACE}.id IN ({})",
            list(&mut projects.into_iter()),
            list(&mut self.traces.values().map(|(_, id)| id.as_slice())),
        )
    }
}

/// A trace with versions on days that are loaded, and on others.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Row)]
pub(crate) struct Moved {
    /// `project_id`
    pub project_id: ByteBuf,
    /// `id`
    pub id: ByteBuf,
}

/// What came of a question.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// Traces that were found, and are not deleted.
    pub found: u64,
    /// Project and id of those that were not found.
    pub not_found: Vec<(Vec<u8>, Vec<u8>)>,
}

impl TraceSource<'_> {
    /// Some traces that are on one of `days` and on other days too, in the order of their keys,
    /// from the one after `last` on. Without any, there are no more.
    ///
    /// # Errors
    /// [`WorkError::Request`]
    pub(crate) async fn moved_far(
        &self,
        days: &RangeInclusive<Day>,
        last: Option<&Moved>,
    ) -> Result<Vec<Moved>, WorkError> {
        let after = last.map_or_else(String::new, |last| {
            let (project, id) = (quoting::string(&last.project_id), quoting::string(&last.id));
            format!(
                " WHERE {TRACE}.project_id > {project} \
                 OR ({TRACE}.project_id = {project} AND {TRACE}.id > {id})"
            )
        });
        let is_loaded = format!(
            "toDate({TRACE}.timestamp) BETWEEN toDate({}) AND toDate({})",
            days.start(),
            days.end()
        );
        let query = format!(
            "SELECT CAST({TRACE}.project_id, 'String') AS project_id, \
             CAST({TRACE}.id, 'String') AS id FROM {} AS {TRACE}{after} \
             GROUP BY project_id, id HAVING countIf({is_loaded}) > 0 AND countIf(NOT {is_loaded}) > 0 \
             ORDER BY project_id, id LIMIT {MOVED_AT_ONCE} \
             SETTINGS max_bytes_before_external_group_by = {ON_DISK_FROM_BYTES}",
            self.table.qualified_name(),
        );
        Ok(self.connection.rows_within(&query, TABLE_TIMEOUT).await?)
    }

    /// Asks for all versions of the traces in a question and keeps the latest of each in the
    /// store, or that there is none.
    ///
    /// # Errors
    /// [`WorkError`] of whatever kind; the same can be asked again.
    pub(crate) async fn ask(
        &self,
        question: &Question,
        about: About,
        store: &TraceStore,
        block_rows: usize,
        shutdown: &Shutdown,
    ) -> Result<Answer, WorkError> {
        let query = format!(
            "SELECT {} FROM (SELECT * FROM {} AS {TRACE} WHERE {} \
             ORDER BY {TRACE}.project_id, {TRACE}.id, {TRACE}.event_ts, toDate({TRACE}.timestamp)) AS {TRACE} \
             ARRAY JOIN [1] AS one",
            SelectItem::list(&trace_items(self.mapping)),
            self.table.qualified_name(),
            question.condition(),
        );
        let statement = Statement::new(query, block_rows)
            .in_bytes(self.budget.preferred_block_bytes)
            .of_a_table();
        let most = self.budget.load_block_bytes;
        catch_up(self.connection, self.table, shutdown).await?;
        let mut blocks =
            BlockStream::open(self.connection, &statement, most, &self.pool, shutdown)?;
        let mut answers = Answers::new(question, about, store);
        while let Some(block) = blocks.next().await? {
            tokio::task::block_in_place(|| answers.take_block(&block))?;
        }
        tokio::task::block_in_place(|| answers.finish())
    }
}

/// Puts the versions of traces that arrive, the latest last, into the store.
struct Answers<'a> {
    question: &'a Question,
    writer: RemoteWriter<'a>,
    /// Whether the latest version of each trace that came is not deleted.
    is_live: BTreeMap<&'a [u8], bool>,
}

impl<'a> Answers<'a> {
    fn new(question: &'a Question, about: About, store: &'a TraceStore) -> Self {
        Self {
            question,
            writer: RemoteWriter::new(store, about),
            is_live: BTreeMap::new(),
        }
    }

    fn take_block(&mut self, block: &Block) -> Result<(), WorkError> {
        let mut rows = TraceRows::new(block)?;
        let (mut key, mut encoded) = (Vec::new(), Vec::new());
        for _ in 0..block.rows {
            let row = rows.next_row()?;
            key.clear();
            key::encode(&mut key, row.project_id, row.trace_id);
            // The same id may stand in another project that was asked for.
            if let Some((key, _)) = self.question.traces.get_key_value(&key) {
                row.record.encode(&mut encoded)?;
                self.writer.put(key, &encoded)?;
                self.is_live.insert(key, !row.record.is_deleted);
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Answer, WorkError> {
        let mut nothing = Vec::new();
        TraceRecord::deleted(0, 0).encode(&mut nothing)?;
        let mut answer = Answer::default();
        for (key, (project, id)) in &self.question.traces {
            match self.is_live.get(key.as_slice()) {
                Some(true) => answer.found += 1,
                Some(false) => answer.not_found.push((project.clone(), id.clone())),
                None => {
                    self.writer.put(key, &nothing)?;
                    answer.not_found.push((project.clone(), id.clone()));
                }
            }
        }
        self.writer.finish()?;
        Ok(answer)
    }
}
