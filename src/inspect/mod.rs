//! Checks the server and its tables before anything is done, and says in one sentence what is missing.

mod access;
mod expiry;
pub(crate) mod placement;
pub mod segments;
pub(crate) mod share;
pub(crate) mod statements;

use std::collections::{BTreeMap, BTreeSet};

use clickhouse::Row;
use serde::Deserialize;

use self::share::is_of_share;
use self::statements::SegmentQuery;
use self::statements::{TRACE, items_query, trace_items};
use crate::cli::options::{Choice, Defaults, Options};
use crate::clickhouse::retry::Retries;
use crate::clickhouse::{Connection, PartitionSize, RequestError, ServerInfo, TableInfo};
use crate::error::Error;
use crate::mapping::{Mapping, MappingError, SelectItem, Source};
use crate::memory::numbers::whole;
use crate::partition::{Partition, ShareOfMonth};

/// Target tables to try, in this order, when none is named.
const TARGETS: [&str; 2] = ["events_full", "events"];
/// The table that links traces to dataset runs.
const DATASET_ITEMS: &str = "dataset_run_items_rmt";

/// The last resort for every certificate problem, as the end of a sentence.
const UNVERIFIED: &str = "or, on a network that you fully trust, add \
                          --dangerously-accept-invalid-certificates";
/// Parts of the explanations (`clickhouse/error.rs`) of certificates that no authority could make valid by
/// signing them.
const IN_ITSELF: [&str; 2] = ["an authority's own", "version 1"];
/// rustls's words for an answer that is not TLS.
const NO_TLS: &str = "InvalidContentType";
/// rustls's words for a certificate of another server.
const OTHER_NAME: &str = "not valid for name";
/// Rows changed within this time, in microseconds, are left to Langfuse, which may not have written their
/// events yet. --until overrides it.
pub(crate) const LEFT_TO_LANGFUSE: i64 = 3_600_000_000;
/// The user lacks a right.
const ACCESS_DENIED: u32 = 497;

/// The partition id of an unpartitioned table.
const UNPARTITIONED: &str = "all";

/// Bytes per stored trace in addition to its attributes: key, lengths, filter, index.
const STORE_BYTES_PER_TRACE: u64 = 32;
/// Bytes of an empty store: most of them are reserved for its log.
const STORE_BYTES_EMPTY: u64 = 10 << 20;
/// Bytes of disk per observation of the month while versions are compared.
const FILE_BYTES_PER_OBSERVATION: u64 = 29;
/// Bytes per event of the target that the store keeps: a key of 22 bytes, a value of 9, and what RocksDB adds. 37
/// were measured.
const STORE_BYTES_PER_EVENT: u64 = 43;
/// A killed run that is resumed reads the events of interrupted segments, and then, where there are no more than
/// this, those of the whole month.
const EVENTS_READ_AGAIN: u64 = 10_000_000;

/// The result of the inspection: everything known before the work begins.
pub(crate) struct Inspected {
    /// The share of the month to do.
    pub share: ShareOfMonth,
    /// Estimated rows of `observations` in this share, including versions that are not merged yet.
    pub observation_rows: u64,
    /// The same for `traces`.
    pub trace_rows: u64,
    /// The server.
    pub server: ServerInfo,
    /// `observations`
    pub observations: TableInfo,
    /// `traces`
    pub traces: TableInfo,
    /// The events table to fill.
    pub target: TableInfo,
    /// `dataset_run_items_rmt`, if its traces are excluded or written as experiments, or would be if
    /// there were any.
    pub dataset_items: Option<TableInfo>,
    /// Defaults for these tables, where the user has not decided.
    pub defaults: Defaults,
    /// Notes for the user about the tables.
    pub notes: Vec<String>,
    /// Problems that may cost rows; errors with --strict.
    pub warnings: Vec<String>,
    /// Whether the spans of dataset runs are excluded.
    pub excludes_dataset_items: bool,
    /// How observations become events.
    pub mapping: Mapping,
    /// How traces become root spans, if these are wanted.
    pub root_spans: Option<Mapping>,
    /// The partition of `observations`; with 0 rows if it does not exist.
    pub observation_partition: PartitionSize,
    /// The partition of `traces`; with 0 rows if it does not exist.
    pub trace_partition: PartitionSize,
    /// Estimated rows of `traces` to load, including those of the days before and after the month.
    pub traces_to_load: u64,
    /// Whether `traces` has rows outside the share.
    pub has_more_traces: bool,
    /// Whether `observations` has rows outside the share.
    pub has_more_observations: bool,
    /// Uncompressed bytes of the columns that the store keeps of the traces to load.
    pub trace_bytes: u64,
    /// Uncompressed bytes of all dataset run items, if experiments are wanted.
    pub item_bytes: u64,
    /// A sentence about what a TTL of the target deletes of the month, if one does.
    pub expiry: Option<String>,
    /// A sentence about rows that are hidden from the user, if any are.
    pub hidden: Option<String>,
    /// The target and the tables that its views fill.
    pub written: Vec<TableInfo>,
}

impl Inspected {
    /// Upper bound for the size of the trace store, in bytes. Ignores compression: LZ4 shrinks ids and
    /// short texts to about two thirds, but not every text, and it is better to have room left than a
    /// full disk.
    pub(crate) fn store_bytes(&self) -> u64 {
        let traces = self.trace_bytes + self.traces_to_load * STORE_BYTES_PER_TRACE;
        let versions = self.observation_rows * FILE_BYTES_PER_OBSERVATION;
        STORE_BYTES_EMPTY + traces + versions + self.item_bytes
    }

    /// Bytes that the store takes for so many events that the target has before the run.
    pub(crate) fn store_bytes_of_events(events: u64) -> u64 {
        events * STORE_BYTES_PER_EVENT
    }

    /// About how many bytes more the store takes where the run is resumed after a kill: those of the events that
    /// it has written by then, some of them twice.
    pub(crate) fn store_bytes_to_resume(&self) -> u64 {
        let root_spans = match self.root_spans {
            Some(_) => self.trace_rows,
            None => 0,
        };
        let events = (self.observation_rows + root_spans).min(EVENTS_READ_AGAIN);
        2 * Self::store_bytes_of_events(events)
    }

    /// Type of `observations.start_time`, whose time zone decides where days begin.
    pub(crate) fn start_type(&self) -> String {
        let column = self.observations.column("start_time");
        column.map_or_else(
            || "DateTime64(3)".to_owned(),
            |column| column.data_type.clone(),
        )
    }

    /// How the rows of a source become events.
    pub(crate) fn mapping_of(&self, source: Source) -> &Mapping {
        match (source, &self.root_spans) {
            (Source::Traces, Some(mapping)) => mapping,
            _ => &self.mapping,
        }
    }

    /// The partition of a source.
    pub(crate) fn partition(&self, source: Source) -> segments::SourcePartition<'_> {
        let (table, rows) = match source {
            Source::Observations => (&self.observations, &self.observation_partition),
            Source::Traces => (&self.traces, &self.trace_partition),
        };
        segments::SourcePartition {
            source,
            table,
            id: &rows.partition_id,
            parts: rows.parts,
            share: self.share,
        }
    }

    /// The query that reads the rows of a segment.
    pub(crate) fn segment_query(&self, source: Source) -> SegmentQuery {
        self.segment_query_of(source, self.mapping_of(source))
    }

    /// The same for the columns of another mapping.
    pub(crate) fn segment_query_of(&self, source: Source, mapping: &Mapping) -> SegmentQuery {
        // The ARRAY JOIN leaves the rows as they are, but splits blocks to max_block_size. FINAL alone does
        // not: it returns granules of up to 10 MiB.
        self.query_of(source, mapping, " FINAL ARRAY JOIN [1] AS one")
    }

    /// The same for all versions of the rows, merged or not.
    pub(crate) fn versions_query_of(&self, source: Source, mapping: &Mapping) -> SegmentQuery {
        self.query_of(source, mapping, "")
    }

    fn query_of(&self, source: Source, mapping: &Mapping, how: &str) -> SegmentQuery {
        let select = format!(
            "SELECT {} FROM {} AS {}{how}",
            mapping.select_list(),
            self.partition(source).table.qualified_name(),
            source.alias(),
        );
        let excluded_by = self.dataset_items.as_ref();
        let excluded_by = excluded_by.filter(|_| self.excludes_dataset_items);
        SegmentQuery {
            select,
            of_share: is_of_share(source, self.share),
            excluded_by: excluded_by.map(|table| table.qualified_name()),
        }
    }
}

/// The months that have rows to backfill.
#[derive(Debug, Default)]
pub(crate) struct Months {
    /// Their rows, including versions that are not merged yet.
    pub rows: BTreeMap<Partition, u64>,
    /// Partitions before 1970 or after 2148, whose days a `Date` cannot hold.
    pub out_of_range: Vec<String>,
    /// The tables that were asked.
    tables: Vec<&'static str>,
}

impl Months {
    /// The error for months that do not exist.
    pub(crate) fn missing(&self, database: &str, missing: &[Partition]) -> Error {
        let there_are: Vec<String> = self.rows.keys().map(Partition::to_string).collect();
        let missing: Vec<String> = missing.iter().map(Partition::to_string).collect();
        no_partition(database, &self.tables, &missing, &there_are)
    }
}

/// Finds the months of the source tables. Once the server has answered a first time, temporary errors are
/// retried.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind), saying what is wrong and what to do.
pub(crate) async fn months(
    connection: &Connection,
    options: &Options,
    retries: &Retries,
) -> Result<Months, Error> {
    let mut inspector = Inspector::new(connection, options);
    inspector.reach_server(retries).await?;
    inspector.connection = connection.with_retries(retries);
    if inspector.options.subject.asked.root_spans == Choice::Default {
        let (target, _) = inspector.find_target().await?;
        inspector.options.subject.root_spans = is_complete(&target);
    }
    let mut months = Months::default();
    for source in inspector.options.subject.sources() {
        let table = inspector.source(source.table()).await?;
        require_monthly(source, &table)?;
        let partitions = inspector.connection.partitions(&table);
        for partition in inspector.ask(partitions).await? {
            match partition.partition_id.parse() {
                Ok(month) => *months.rows.entry(month).or_default() += partition.rows,
                Err(_) => months.out_of_range.push(partition.partition_id),
            }
        }
        months.tables.push(source.table());
    }
    months.out_of_range.sort_unstable();
    months.out_of_range.dedup();
    Ok(months)
}

/// Inspects server, tables and partition, and fills in the options that the user left to the tables. Once
/// the server has answered a first time, temporary errors are retried.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind), saying what is wrong and what to do.
pub(crate) async fn inspect(
    connection: &Connection,
    options: &mut Options,
    retries: &Retries,
) -> Result<Inspected, Error> {
    let mut inspector = Inspector::new(connection, options);
    let server = inspector.reach_server(retries).await?;
    inspector.connection = connection.with_retries(retries);
    let inspected = inspector.inspect(server).await?;
    *options = inspector.options;
    Ok(inspected)
}

/// Whether a target has all columns of an event. Older tables have none for experiments, and v4 never
/// reads them.
fn is_complete(target: &TableInfo) -> bool {
    target.column("experiment_id").is_some()
}

#[derive(Row, Deserialize)]
struct Count {
    count: u64,
}

struct Inspector {
    connection: Connection,
    options: Options,
    notes: Vec<String>,
    warnings: Vec<String>,
}

impl Inspector {
    fn new(connection: &Connection, options: &Options) -> Self {
        Self {
            connection: connection.clone(),
            options: options.clone(),
            notes: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Contacts the server for the first time. Reports a wrong address at once; only unattended runs retry,
    /// since the server may not have started yet.
    async fn reach_server(&mut self, retries: &Retries) -> Result<ServerInfo, Error> {
        if self.options.is_unattended() {
            self.connection = self.connection.with_retries(retries);
        }
        self.server().await
    }

    async fn inspect(&mut self, server: ServerInfo) -> Result<Inspected, Error> {
        let observations = self.source("observations").await?;
        let traces = self.source("traces").await?;
        let target = self.target().await?;
        self.require_one_of_each([&observations, &traces, &target])
            .await?;
        let defaults = self.defaults(&target).await?;
        self.options.settle(defaults);
        let dataset_items = self.dataset_items().await?;
        require_monthly(Source::Observations, &observations)?;
        require_monthly(Source::Traces, &traces)?;
        let wanted = self.options.subject.wanted();
        let mapping = |source, table| {
            Mapping::new(source, table, &traces, &target, wanted).map_err(describe_mapping)
        };
        let root_spans = match self.options.subject.root_spans {
            true => Some(mapping(Source::Traces, &traces)?),
            false => None,
        };
        let mapping = mapping(Source::Observations, &observations)?;
        for (mapping, table) in [
            (Some(&mapping), &observations),
            (root_spans.as_ref(), &traces),
        ] {
            let Some(mapping) = mapping else { continue };
            self.probe(table, mapping.source.alias(), &mapping.source_items())
                .await?;
        }
        self.probe(&traces, TRACE, &trace_items(&mapping)).await?;
        let written = self.written_tables(&target).await?;
        self.require_insert(&written).await?;
        self.require_select(&written).await?;
        self.look_for_processes().await?;
        let sources: Vec<&TableInfo> = [&observations, &traces]
            .into_iter()
            .chain(&dataset_items)
            .collect();
        let hidden = self.look_for_hidden_rows(&sources, &written).await?;
        let partition_id = self.options.partition.to_string();
        let observation_partitions = self.ask(self.connection.partitions(&observations)).await?;
        let trace_partitions = self.ask(self.connection.partitions(&traces)).await?;
        let observation_partition = find_partition(&observation_partitions, &partition_id);
        let trace_partition = find_partition(&trace_partitions, &partition_id);
        require_partition(&self.options, &observation_partitions, &trace_partitions)?;
        let expiry = self
            .look_for_expiry(&written, &observations, &observation_partition)
            .await?;
        let mut stored = mapping.trace_columns();
        stored.extend(["id", "project_id"]);
        let has_others = |partitions: &[PartitionSize]| {
            partitions.iter().any(|p| p.partition_id != partition_id)
        };
        let (mut traces_to_load, mut trace_bytes) = (0, 0);
        for (id, share) in shares_of_partitions(&self.options) {
            let Some(partition) = trace_partitions.iter().find(|p| p.partition_id == id) else {
                continue;
            };
            let sizes = self.connection.column_sizes(&traces, &id);
            traces_to_load += whole((partition.rows as f64 * share).ceil());
            let sizes = self.ask(sizes).await?;
            let bytes = sizes.of(|column| stored.contains(&column)).uncompressed;
            trace_bytes += whole((bytes as f64 * share).ceil());
        }
        let item_bytes = match &dataset_items {
            Some(items) if self.options.subject.experiments => {
                let sizes = self.connection.column_sizes(items, UNPARTITIONED);
                let is_stored = |column: &str| column != "dataset_item_input";
                self.ask(sizes).await?.of(is_stored).uncompressed
            }
            _ => 0,
        };
        let is_shard = self.options.shard.is_some();
        Ok(Inspected {
            share: self.options.share(),
            observation_rows: self
                .rows_of_share(Source::Observations, &observations, &observation_partition)
                .await?,
            trace_rows: self
                .rows_of_share(Source::Traces, &traces, &trace_partition)
                .await?,
            item_bytes,
            expiry,
            hidden,
            written,
            server,
            observations,
            traces,
            target,
            dataset_items,
            defaults,
            notes: std::mem::take(&mut self.notes),
            warnings: std::mem::take(&mut self.warnings),
            excludes_dataset_items: self.options.subject.exclude_dataset_items,
            mapping,
            root_spans,
            observation_partition,
            trace_partition,
            traces_to_load,
            has_more_observations: is_shard || has_others(&observation_partitions),
            has_more_traces: is_shard || has_others(&trace_partitions),
            trace_bytes,
        })
    }

    /// Estimated rows of a source in this share. For a shard, the server estimates from its index which
    /// granules have the shard's days.
    async fn rows_of_share(
        &self,
        source: Source,
        table: &TableInfo,
        partition: &PartitionSize,
    ) -> Result<u64, Error> {
        let share = self.options.share();
        if share.shard.is_none() {
            return Ok(partition.rows);
        }
        let query = format!(
            "SELECT sum(rows) AS count FROM (SELECT rows FROM (EXPLAIN ESTIMATE SELECT 1 FROM {} AS {} \
             WHERE {}))",
            table.qualified_name(),
            source.alias(),
            is_of_share(source, share),
        );
        let counts = self.ask(self.connection.rows::<Count>(&query)).await?;
        Ok(counts.iter().map(|count| count.count).sum())
    }

    async fn ask<T>(
        &self,
        request: impl Future<Output = Result<T, RequestError>>,
    ) -> Result<T, Error> {
        request.await.map_err(|error| self.describe(&error))
    }

    /// Explains the errors that are common on first contact.
    fn describe(&self, error: &RequestError) -> Error {
        let address = self.connection.address();
        let user = &self.options.connection.user;
        let sentence = match (error, error.code()) {
            (_, Some(516 | 192 | 193 | 194)) => format!(
                "ClickHouse at {address} rejects the login of user '{user}': check CLICKHOUSE_USER and \
                 CLICKHOUSE_PASSWORD"
            ),
            (_, Some(452 | 164)) => format!(
                "the settings profile of user '{user}' forbids a setting that is needed: {error}; remove \
                 the constraint, or set CLICKHOUSE_USER to another user"
            ),
            (RequestError::Certificate(why), _) if why.contains(OTHER_NAME) => format!(
                "the certificate of ClickHouse at {address} is for another name ({why}): use the \
                 certificate's name in CLICKHOUSE_URL, {UNVERIFIED}"
            ),
            (RequestError::Certificate(why), _)
                if IN_ITSELF.iter().any(|one| why.contains(one)) =>
            {
                format!(
                    "the certificate of ClickHouse at {address} is not accepted ({why}): give the server \
                     one of version 3 with CA:FALSE and its name as subjectAltName, signed by an \
                     authority in SSL_CERT_FILE, {UNVERIFIED}"
                )
            }
            (RequestError::Certificate(why), _) => format!(
                "the certificate of ClickHouse at {address} is not accepted ({why}): set SSL_CERT_FILE to \
                 a file with the certificate of the authority that signed it, {UNVERIFIED}"
            ),
            (RequestError::Compressed, _) => error.to_string(),
            (_, Some(ACCESS_DENIED)) => format!("user '{user}' lacks a right: {error}"),
            (RequestError::Network(cause), _) if cause.contains(NO_TLS) => format!(
                "the server at {address} does not speak TLS on this port: write http:// in CLICKHOUSE_URL, or \
                 its TLS port ({cause})"
            ),
            (RequestError::Network(cause), _) => format!(
                "ClickHouse at {address} cannot be reached ({cause}): check CLICKHOUSE_URL; its port \
                 must be that of the HTTP interface"
            ),
            (RequestError::TimedOut { .. }, _) => format!(
                "ClickHouse at {address} accepts the connection but does not answer ({error}): check \
                 CLICKHOUSE_URL and the load of the server"
            ),
            (
                RequestError::Http {
                    status: Some(status @ 502..=504),
                    ..
                },
                _,
            ) => format!(
                "a proxy in front of ClickHouse at {address} answers with status {status}: check that the \
                 server is running and that the proxy can reach it"
            ),
            (RequestError::Http { .. } | RequestError::Unexpected(_), _) => format!(
                "something other than ClickHouse's HTTP interface answers at {address}: check \
                 CLICKHOUSE_URL ({error})"
            ),
            _ => error.to_string(),
        };
        let failed = match self.options.is_unattended() && error.is_passing() {
            // Exit code 1, so that the service manager starts it again; with 2 it would not.
            true => Error::failed(sentence),
            false => Error::configuration(sentence),
        };
        failed.about(setting_behind(error))
    }

    /// Lets the server check that it can compute every column; finds the one that it cannot.
    async fn probe(
        &self,
        table: &TableInfo,
        alias: &str,
        items: &[SelectItem],
    ) -> Result<(), Error> {
        let name = table.qualified_name();
        let select = |items: &str| format!("SELECT {items} FROM {name} AS {alias} LIMIT 0");
        let Err(error) = self
            .connection
            .check(&select(&SelectItem::list(items)))
            .await
        else {
            return Ok(());
        };
        if error.code() == Some(ACCESS_DENIED) || error.is_held_limit() {
            return Err(self.describe(&error));
        }
        for item in items {
            if let Err(error) = self.connection.check(&select(&item.sql)).await {
                let types: Vec<String> = table
                    .columns
                    .iter()
                    .filter(|column| item.reads.contains(&column.name.as_str()))
                    .map(|column| format!("{} is {}", column.name, column.data_type))
                    .collect();
                return Err(Error::configuration(format!(
                    "table {}.{} has a column of another type than Langfuse's ({}): {} fails, {error}",
                    table.database,
                    table.name,
                    types.join(", "),
                    item.sql
                )));
            }
        }
        Err(self.describe(&error))
    }

    async fn server(&mut self) -> Result<ServerInfo, Error> {
        self.require_changeable_settings().await?;
        self.ask(self.connection.settle_settings()).await?;
        self.warn_of_held_limits()?;
        let server = self.ask(self.connection.server_info()).await?;
        let database = &self.options.database;
        if self.ask(self.connection.database_exists(database)).await? {
            return Ok(server);
        }
        Err(Error::configuration(format!(
            "ClickHouse at {} has no database '{database}', or user '{}' may not see it: check \
             CLICKHOUSE_DB",
            self.connection.address(),
            self.options.connection.user
        ))
        .about("CLICKHOUSE_DB"))
    }

    /// Makes sure that all addresses lead to the same tables.
    async fn require_one_of_each(&self, tables: [&TableInfo; 3]) -> Result<(), Error> {
        if self.connection.places() == 1 {
            return Ok(());
        }
        for table in tables {
            let is_one = self.ask(self.connection.is_one_table(table)).await?;
            is_one.map_err(Error::configuration)?;
        }
        Ok(())
    }

    async fn find(&self, name: &str) -> Result<Option<TableInfo>, Error> {
        let database = &self.options.database;
        match self.options.local_tables {
            true => self.ask(self.connection.local_table(database, name)).await,
            false => self.ask(self.connection.table(database, name)).await,
        }
    }

    async fn source(&self, name: &str) -> Result<TableInfo, Error> {
        let database = &self.options.database;
        let Some(table) = self.find(name).await? else {
            return Err(Error::configuration(format!(
                "database '{database}' has no table {name}: is it Langfuse's database? Check \
                 CLICKHOUSE_DB"
            ))
            .about("CLICKHOUSE_DB"));
        };
        refuse_distributed(&table)?;
        if !table.is_replacing() {
            return Err(Error::configuration(format!(
                "table {database}.{name} is a {}, not a ReplacingMergeTree, so the current version \
                 of a row cannot be determined: check CLICKHOUSE_DB",
                table.engine
            )));
        }
        Ok(table)
    }

    /// Defaults for the options that the user left open.
    async fn defaults(&mut self, target: &TableInfo) -> Result<Defaults, Error> {
        let asked = self.options.subject.asked;
        if !is_complete(target) {
            if asked.root_spans == Choice::Default || asked.experiments == Choice::Default {
                self.notes.push(format!(
                    "{} has no column experiment_id: root spans and experiments are off, unless you ask for \
                     them",
                    target.name
                ));
            }
            return Ok(Defaults::default());
        }
        let is_open =
            asked.experiments == Choice::Default && self.options.experiments_so_far.is_none();
        Ok(Defaults {
            root_spans: true,
            experiments: is_open && self.has_dataset_items().await?,
        })
    }

    /// Whether there are dataset run items. Without any, there are no experiments to look for.
    async fn has_dataset_items(&mut self) -> Result<bool, Error> {
        let Some(table) = self.find(DATASET_ITEMS).await? else {
            self.notes.push(format!(
                "experiments are off: database '{}' has no table {DATASET_ITEMS}",
                self.options.database
            ));
            return Ok(false);
        };
        let query = format!("SELECT count() AS count FROM {}", table.qualified_name());
        let counts = self.ask(self.connection.rows::<Count>(&query)).await?;
        Ok(counts.iter().any(|count| count.count > 0))
    }

    /// The target, and whether it is the old table that v4 does not read.
    async fn find_target(&self) -> Result<(TableInfo, bool), Error> {
        match &self.options.target_table {
            Some(name) => {
                let table = self.find(name).await?.ok_or_else(|| {
                    Error::configuration(format!(
                        "database '{}' has no table {name} (--target-table)",
                        self.options.database
                    ))
                })?;
                Ok((table, false))
            }
            None => self.default_target().await,
        }
    }

    async fn target(&mut self) -> Result<TableInfo, Error> {
        let (table, is_old) = self.find_target().await?;
        refuse_distributed(&table)?;
        if is_old {
            self.warn(format!(
                "database '{}' has no table {}, only {}, which Langfuse v4 never reads: run Langfuse's v4 \
                 migrations first, unless you need this table for something else",
                self.options.database, TARGETS[0], table.name
            ))?;
        }
        let database = &self.options.database;
        if let Some(source) = self.ask(self.connection.fed_by_view(&table)).await? {
            return Err(Error::configuration(format!(
                "table {database}.{} is filled from {source} by a materialized view: write to \
                 {source} (--target-table)",
                table.name
            )));
        }
        if table.has_views && !self.ask(self.connection.sees_views_of(&table)).await? {
            return Err(Error::configuration(format!(
                "user '{}' cannot see the materialized views that read {database}.{}, so events_core, \
                 which v4 reads, could not be kept correct: GRANT SHOW TABLES ON {database}.* TO {}",
                self.options.connection.user, table.name, self.options.connection.user
            )));
        }
        if !table.is_replacing() && !self.options.allow_duplicates {
            return Err(Error::configuration(format!(
                "the target {database}.{} is a {}, not a ReplacingMergeTree: a retry, a resume or \
                 another run would leave duplicate rows in it; add --allow-duplicates if you accept that",
                table.name, table.engine
            )));
        }
        Ok(table)
    }

    async fn default_target(&self) -> Result<(TableInfo, bool), Error> {
        for name in TARGETS {
            if let Some(table) = self.find(name).await? {
                return Ok((table, name != TARGETS[0]));
            }
        }
        Err(Error::configuration(format!(
            "database '{}' has neither a table events_full nor events: run Langfuse's v4 \
             migrations first, or give the table with --target-table",
            self.options.database
        )))
    }

    async fn dataset_items(&self) -> Result<Option<TableInfo>, Error> {
        let flag = match (
            self.options.subject.experiments,
            self.options.subject.exclude_dataset_items,
        ) {
            (true, _) => "--experiments",
            (false, true) => "--exclude-dataset-items",
            (false, false) if self.options.subject.asked.experiments == Choice::Default => {
                return self.find(DATASET_ITEMS).await;
            }
            (false, false) => return Ok(None),
        };
        let Some(table) = self.find(DATASET_ITEMS).await? else {
            return Err(Error::configuration(format!(
                "{flag} needs the table {DATASET_ITEMS}, which database '{}' does not have",
                self.options.database
            )));
        };
        let select = match self.options.subject.experiments {
            true => format!("{} LIMIT 0", items_query(&table, "1")),
            false => format!(
                "SELECT project_id, trace_id FROM {} FINAL LIMIT 0",
                table.qualified_name()
            ),
        };
        self.ask(self.connection.check(&select)).await?;
        Ok(Some(table))
    }
}

/// Refuses Distributed tables: FINAL and the count of written rows only work on the shard itself.
fn refuse_distributed(table: &TableInfo) -> Result<(), Error> {
    match table.is_distributed() {
        false => Ok(()),
        true => Err(Error::configuration(format!(
            "{}.{} is a Distributed table: add --all-shards to backfill every shard of its cluster, or \
             --local-tables for the rows of the server in CLICKHOUSE_URL alone",
            table.database, table.name
        ))),
    }
}

fn describe_mapping(error: MappingError) -> Error {
    Error::configuration(format!(
        "{error}; does this database belong to a Langfuse v3 or v4, and have all its migrations run?"
    ))
}

/// The partition, or an empty one.
fn find_partition(partitions: &[PartitionSize], partition_id: &str) -> PartitionSize {
    partitions
        .iter()
        .find(|partition| partition.partition_id == partition_id)
        .cloned()
        .unwrap_or(PartitionSize {
            partition_id: partition_id.to_owned(),
            rows: 0,
            parts: 0,
        })
}

/// Fails unless one of the source tables has the partition.
fn require_partition(
    options: &Options,
    observations: &[PartitionSize],
    traces: &[PartitionSize],
) -> Result<(), Error> {
    let mut there_are = BTreeSet::new();
    for source in options.subject.sources() {
        let partitions = match source {
            Source::Observations => observations,
            Source::Traces => traces,
        };
        there_are.extend(partitions.iter().map(|p| p.partition_id.clone()));
    }
    let partition_id = options.partition.to_string();
    if there_are.contains(&partition_id) {
        return Ok(());
    }
    let tables: Vec<&str> = options
        .subject
        .sources()
        .iter()
        .map(|s| s.table())
        .collect();
    let there_are: Vec<String> = there_are.into_iter().collect();
    Err(no_partition(
        &options.database,
        &tables,
        &[partition_id],
        &there_are,
    ))
}

/// The partitions to load traces from, each with the fraction of its days.
pub(crate) fn shares_of_partitions(options: &Options) -> BTreeMap<String, f64> {
    /// Days of a month, roughly.
    const MONTH: f64 = 30.0;
    let mut shares = BTreeMap::new();
    for day in options.days_of_traces() {
        *shares.entry(Partition::id_of(day)).or_insert(0.0) += 1.0 / MONTH;
    }
    if options.shard.is_none() {
        shares.insert(options.partition.to_string(), 1.0);
    }
    shares
        .values_mut()
        .for_each(|share| *share = share.min(1.0));
    shares
}

/// The error for partitions that none of these tables has; lists those that they have.
fn no_partition(
    database: &str,
    tables: &[&str],
    missing: &[String],
    there_are: &[String],
) -> Error {
    let (table, is_empty) = match tables {
        [_] => ("table", "the table is empty"),
        _ => ("neither of the tables", "both are empty"),
    };
    let tables: Vec<String> = tables
        .iter()
        .map(|name| format!("{database}.{name}"))
        .collect();
    let there_are = match there_are {
        [] => is_empty.to_owned(),
        _ => format!("there are {}", there_are.join(", ")),
    };
    let partitions = match missing {
        [_] => "partition",
        _ => "partitions",
    };
    let has_no = match tables.len() {
        1 => "has no",
        _ => "has",
    };
    Error::configuration(format!(
        "{table} {} {has_no} {partitions} {}: {there_are}",
        tables.join(" and "),
        missing.join(", ")
    ))
}

/// The variable of the setting that is most likely wrong where the server cannot be asked.
fn setting_behind(error: &RequestError) -> Option<&'static str> {
    match (error, error.code()) {
        (_, Some(516 | 192 | 193 | 194)) => Some("CLICKHOUSE_PASSWORD"),
        (_, Some(_)) => None,
        (
            RequestError::Network(_)
            | RequestError::TimedOut { .. }
            | RequestError::Http { .. }
            | RequestError::Unexpected(_),
            None,
        ) => Some("CLICKHOUSE_URL"),
        _ => None,
    }
}

fn require_monthly(source: Source, table: &TableInfo) -> Result<(), Error> {
    let expected = format!("toYYYYMM({})", source.time_column());
    if table.partition_key == expected {
        return Ok(());
    }
    Err(Error::configuration(format!(
        "table {}.{} is partitioned by '{}', not by month ({expected}), so it cannot be backfilled \
         month by month",
        table.database, table.name, table.partition_key
    )))
}
