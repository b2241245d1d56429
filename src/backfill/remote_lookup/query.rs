//! Asks ClickHouse for traces that are on none of the loaded days, in any month, each once and many
//! at a time.
//!
//! It also finds traces that are on a loaded day and on others too, possibly years away: ClickHouse
//! groups all ids of the table, and may use its disk for that.
//!
//! The Bloom filter index of `traces` passes one granule in a thousand for each id. A query for one
//! trace reads little, but many such queries would read the table again and again; a query for
//! thousands reads all ids once.

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

/// Bytes of ids per query. ClickHouse takes about three times as much for the query text and the
/// set built from it.
const QUESTION_BYTES: usize = 4 * 1024 * 1024;
/// Traces per query when searching for versions far apart.
pub(super) const MOVED_AT_ONCE: usize = 20_000;

/// A batch of traces to look up: project and id, by key.
#[derive(Debug, Default)]
pub(crate) struct Question {
    traces: BTreeMap<Vec<u8>, (Vec<u8>, Vec<u8>)>,
    bytes: usize,
    /// The days to search, if not all.
    days: Option<RangeInclusive<Day>>,
}

impl Question {
    /// Adds the traces of a block's deferred rows, except those known to be missing. The columns
    /// hold project and trace id.
    ///
    /// # Errors
    /// [`WorkError`] if the block is damaged or the store fails.
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

    /// A batch of these traces.
    pub(crate) fn of(traces: Vec<Moved>) -> Self {
        let mut question = Self::default();
        for Moved { project_id, id } in traces {
            let mut encoded = Vec::new();
            key::encode(&mut encoded, &project_id, &id);
            question.insert(encoded, project_id.into_vec(), id.into_vec());
        }
        question
    }

    /// Adds a trace.
    pub(crate) fn add_trace(&mut self, project: Vec<u8>, id: Vec<u8>) {
        let mut encoded = Vec::new();
        key::encode(&mut encoded, &project, &id);
        if !self.traces.contains_key(&encoded) {
            self.insert(encoded, project, id);
        }
    }

    /// Limits the search to some days, which `traces` finds by its primary key.
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

    /// Removes traces found on loaded days, and stores them where a look-up finds them directly.
    /// Holds at most `max_bytes` of records, or a single larger one.
    ///
    /// # Errors
    /// [`WorkError::Store`] if the store fails.
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

    /// Whether to run the query before adding more.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= QUESTION_BYTES
    }

    /// Whether the batch is empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.traces.is_empty()
    }

    /// Number of traces.
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

/// A trace with versions on loaded and on other days.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Row)]
pub(crate) struct Moved {
    /// `project_id`
    pub project_id: ByteBuf,
    /// `id`
    pub id: ByteBuf,
}

/// The result of a look-up.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// Traces found that are not deleted.
    pub found: u64,
    /// Project and id of traces not found.
    pub not_found: Vec<(Vec<u8>, Vec<u8>)>,
}

impl TraceSource<'_> {
    /// The next traces after `last` that are on one of `days` and on other days too, in key order.
    /// Empty at the end.
    ///
    /// # Errors
    /// [`WorkError::Request`] if the server rejects the query or cannot be reached.
    pub(crate) async fn moved_far(
        &self,
        days: &RangeInclusive<Day>,
        last: Option<&Moved>,
    ) -> Result<Vec<Moved>, WorkError> {
        self.connection.catch_up(self.table).await?;
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
            "SELECT CAST({TRACE}.project_id, 'String') AS project_id, CAST({TRACE}.id, 'String') \
             AS id FROM {} AS {TRACE}{after} GROUP BY project_id, id HAVING countIf({is_loaded}) \
             > 0 AND countIf(NOT {is_loaded}) > 0 ORDER BY project_id, id LIMIT {MOVED_AT_ONCE} \
             SETTINGS max_bytes_before_external_group_by = {ON_DISK_FROM_BYTES}",
            self.table.qualified_name(),
        );
        Ok(self.connection.rows_within(&query, TABLE_TIMEOUT).await?)
    }

    /// Looks up all versions of a batch's traces and stores the latest of each, or that there is
    /// none.
    ///
    /// # Errors
    /// [`WorkError`] if the server or the store fails, or on a signal. May be repeated.
    pub(crate) async fn ask(
        &self,
        question: &Question,
        about: About,
        store: &TraceStore,
        block_rows: usize,
        shutdown: &Shutdown,
    ) -> Result<Answer, WorkError> {
        let query = format!(
            "SELECT {} FROM (SELECT * FROM {} AS {TRACE} WHERE {} ORDER BY {TRACE}.project_id, \
             {TRACE}.id, {TRACE}.event_ts, toDate({TRACE}.timestamp)) AS {TRACE} ARRAY JOIN [1] \
             AS one",
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

/// Stores arriving trace versions, the latest last.
struct Answers<'a> {
    question: &'a Question,
    writer: RemoteWriter<'a>,
    /// Whether the latest version of each trace is not deleted.
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
            // The same id may occur in another listed project.
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
