//! The plan: estimates a run without writing anything, on the server or in the state directory.

mod disk;
mod earlier_runs;
mod engines;
mod experiments;
mod sample;
mod summary;
mod time;
mod totals;

use crate::cli::options::{Intent, Options};
use crate::clickhouse::{ColumnSizes, Connection, RequestError, TableInfo, TableName, TableSize};
use crate::error::Error;
use crate::inspect::segments::{self, Segment};
use crate::inspect::statements::trace_items;
use crate::inspect::{Inspected, shares_of_partitions};
use crate::mapping::Source;
use crate::session::Session;
use crate::state::checkpoint::Checkpoint;
use crate::state::directory::{PartitionDir, free_bytes};
use crate::state::resume;

use disk::{Growth, RootSpanSources, RootSpans, Sources, Table};
use engines::{Amounts, Engines};
use sample::Sampler;
pub(crate) use summary::{Forecast, OneOfSeveral};
use summary::{ServerRoom, TableToRead, TraceStoreRoom};
use time::Time;
pub(crate) use totals::Totals;

/// Observation columns that FINAL compares.
const FINAL_COLUMNS: [&str; 6] = [
    "project_id",
    "type",
    "start_time",
    "id",
    "event_ts",
    "is_deleted",
];

/// Estimates the run of one partition.
///
/// # Errors
/// [`Error`] with a sentence for the operator and the exit code.
pub(crate) async fn run(session: &Session, options: Options) -> Result<Forecast, Error> {
    session.unless_interrupted(make(session, &options)).await
}

async fn make(session: &Session, options: &Options) -> Result<Forecast, Error> {
    let retries = &session.retries(options);
    let mut options = Options {
        intent: Intent::Rehearse,
        ..options.clone()
    };
    let inspected = session.inspect(&mut options, retries).await?;
    let options = &options;
    let connection = session.connection.with_retries(retries);
    let sources = options.subject.sources().into_iter();
    let partitions: Vec<_> = sources.map(|source| inspected.partition(source)).collect();
    let segments = segments::make(&connection, &partitions, options.segment_rows)
        .await
        .map_err(|error| Error::caused("cannot divide the partition into segments", error))?;
    let sampler = Sampler {
        options,
        connection: &connection,
        inspected: &inspected,
        retries,
        shutdown: &session.shutdown,
    };
    let of_source = |source| {
        let segments = segments
            .iter()
            .filter(move |segment| segment.source == source);
        segments.cloned().collect::<Vec<_>>()
    };
    let sample = sampler.take(&of_source(Source::Observations)).await?;
    let mut forecaster = Forecaster {
        options,
        connection: &connection,
        inspected: &inspected,
        unseen: Vec::new(),
        segments_in_words: segments::larger_than_asked(
            &segments,
            &partitions,
            options.segment_rows,
        ),
    };
    forecaster.put_together(&segments, sample).await
}

/// Observation rows that become events.
fn observation_rows(options: &Options, inspected: &Inspected) -> u64 {
    match options.subject.observations {
        true => inspected.observation_rows,
        false => 0,
    }
}

/// The inputs of a forecast.
struct Forecaster<'a> {
    options: &'a Options,
    connection: &'a Connection,
    inspected: &'a Inspected,
    /// What this user may not read, and why.
    unseen: Vec<String>,
    /// Why segments are larger than asked for, if they are.
    segments_in_words: Option<String>,
}

impl Forecaster<'_> {
    async fn put_together(
        &mut self,
        segments: &[Segment],
        sample: sample::Sample,
    ) -> Result<Forecast, Error> {
        let (options, inspected) = (self.options, self.inspected);
        let target_table = format!("{}.{}", inspected.target.database, inspected.target.name);
        let sources = self.sources().await?;
        let events_there = self.events_there().await?;
        let server_disk = self.server_room(&sources.with_root_spans()).await?;
        let trace_store = TraceStoreRoom {
            state_dir: options.state_dir.display().to_string(),
            needed_bytes: inspected.store_bytes()
                + Inspected::store_bytes_of_events(events_there.unwrap_or(0)),
            resume_bytes: inspected.store_bytes_to_resume(),
            free_bytes: free_bytes(&options.state_dir),
        };
        let rows = observation_rows(options, inspected);
        let segments_of = |source| segments.iter().filter(move |s| s.source == source);
        // Without a sample, assume the events are as large as what they are made of.
        let write_bytes = sample
            .bytes_of(rows)
            .unwrap_or(sources.observations.uncompressed);
        let root_spans = sources.root_spans.map(|root_spans| RootSpans {
            rows: root_spans.rows,
            segments: segments_of(Source::Traces).count() as u64,
            bytes: root_spans.all,
        });
        let time = Time::new(
            options,
            inspected,
            &sample,
            write_bytes,
            root_spans.as_ref(),
            earlier_runs::longest(&options.state_dir, &target_table),
        );
        let engines = Engines::new(
            options,
            inspected,
            Amounts {
                rows,
                read_bytes: sources.observations.uncompressed
                    + sources.traces.uncompressed
                    + root_spans.as_ref().map_or(0, |r| r.bytes.uncompressed),
                write_bytes,
                root_spans: root_spans.as_ref(),
                embedded_seconds: time.total_seconds,
            },
        );
        let warnings = [trace_store.warning(), server_disk.warning()];
        let own_notes = self.segments_in_words.take().into_iter();
        let own_notes: Vec<String> = own_notes.chain(self.state_in_words()).collect();
        let mut notes = self.notes(&server_disk, &time);
        notes.extend(own_notes.iter().cloned());
        Ok(Forecast {
            partition: options.partition.to_string(),
            target_table,
            clickhouse_version: inspected.server.version.clone(),
            observations: TableToRead {
                rows,
                parts: inspected.observation_partition.parts,
                bytes: sources.observations,
            },
            traces: TableToRead {
                rows: inspected.traces_to_load,
                parts: inspected.trace_partition.parts,
                bytes: sources.traces,
            },
            trace_margin_days: options.subject.trace_margin_days,
            events_there,
            write_bytes: write_bytes + root_spans.as_ref().map_or(0, |r| r.bytes.uncompressed),
            root_spans,
            segments: segments_of(Source::Observations).count() as u64,
            largest_segment_rows: segments_of(Source::Observations)
                .map(|segment| segment.rows)
                .max()
                .unwrap_or(0),
            notes,
            own_notes,
            trace_store,
            server_disk,
            sample,
            time,
            engines,
            warnings: warnings.into_iter().flatten().collect(),
        })
    }

    /// Sizes of what the server has to read.
    async fn sources(&mut self) -> Result<Sources, Error> {
        let inspected = self.inspected;
        let observations = &inspected.observations;
        let partition_id = self.options.partition.to_string();
        let sizes = self.column_sizes(observations, &partition_id).await?;
        let items = inspected.mapping.source_items();
        let is_read = |column: &str| {
            FINAL_COLUMNS.contains(&column) || items.iter().any(|item| item.reads.contains(&column))
        };
        let mut sources = Sources {
            rows: observation_rows(self.options, inspected),
            observations: sizes.of(is_read),
            texts: sizes.of(|column| matches!(column, "input" | "output")),
            metadata: sizes.of(|column| column == "metadata"),
            trace_rows: inspected.traces_to_load,
            ..Sources::default()
        };
        if !self.options.subject.observations {
            sources = Sources {
                trace_rows: sources.trace_rows,
                ..Sources::default()
            };
        }
        sources.root_spans = self.root_span_sources(&partition_id).await?;
        let items = trace_items(&inspected.mapping);
        let attributes = inspected.mapping.trace_columns();
        for (partition_id, share) in shares_of_partitions(self.options) {
            let sizes = self.column_sizes(&inspected.traces, &partition_id).await?;
            let is_read = |column: &str| items.iter().any(|item| item.reads.contains(&column));
            sources.traces += sizes.of(is_read).share(share);
            let is_attribute = |column: &str| attributes.contains(&column);
            sources.attributes += sizes.of(is_attribute).share(share);
        }
        Ok(sources)
    }

    async fn root_span_sources(
        &mut self,
        partition_id: &str,
    ) -> Result<Option<RootSpanSources>, Error> {
        let inspected = self.inspected;
        let Some(mapping) = &inspected.root_spans else {
            return Ok(None);
        };
        let sizes = self.column_sizes(&inspected.traces, partition_id).await?;
        let items = mapping.source_items();
        let is_read = |column: &str| items.iter().any(|item| item.reads.contains(&column));
        Ok(Some(RootSpanSources {
            rows: inspected.trace_rows,
            all: sizes.of(is_read),
            texts: sizes.of(|column| matches!(column, "input" | "output")),
            metadata: sizes.of(|column| column == "metadata"),
        }))
    }

    async fn column_sizes(
        &mut self,
        table: &TableInfo,
        partition_id: &str,
    ) -> Result<ColumnSizes, Error> {
        let sizes = self.connection.column_sizes(table, partition_id).await;
        self.known(sizes, "column sizes (system.parts_columns)")
            .map(Option::unwrap_or_default)
    }

    /// Events of the partition already in the target, or `None` if this user may not read it.
    async fn events_there(&mut self) -> Result<Option<u64>, Error> {
        let target = &self.inspected.target;
        let partition_id = self.options.partition.to_string();
        let rows = self.connection.event_rows(target, &partition_id).await;
        self.known(rows, "the number of existing events")
    }

    /// Disk space the events need on the server, and what is free.
    async fn server_room(&mut self, sources: &Sources) -> Result<ServerRoom, Error> {
        let target = &self.inspected.target;
        let itself = TableName {
            database: target.database.clone(),
            name: target.name.clone(),
        };
        let mut tables = vec![self.growth(itself, false, sources).await?];
        let fed = self.connection.fed_tables(target).await;
        let fed = self.known(fed, "the tables filled by views (system.tables)")?;
        for table in fed.unwrap_or_default() {
            tables.push(self.growth(table, true, sources).await?);
        }
        let disks = self.connection.disks(target).await;
        let disks = self
            .known(
                disks,
                "the free disk space (system.disks, system.storage_policies)",
            )?
            .unwrap_or_default();
        let is_known = !disks.is_empty() && !disks.iter().any(|disk| disk.is_endless());
        Ok(ServerRoom {
            needed_bytes: tables.iter().map(|table| table.bytes).sum(),
            tables,
            free_bytes: is_known.then(|| disks.iter().map(|disk| disk.free_bytes).sum()),
            disks: disks.into_iter().map(|disk| disk.name).collect(),
        })
    }

    async fn growth(
        &mut self,
        table: TableName,
        is_fed: bool,
        sources: &Sources,
    ) -> Result<Growth, Error> {
        let size = self.connection.table_size(&table).await;
        let indexes = self.connection.text_indexes(&table).await;
        let size = self.known(size, "table sizes (system.parts)")?;
        let indexes = self.known(indexes, "indexes (system.data_skipping_indices)")?;
        let table = Table {
            size: size.unwrap_or(TableSize {
                rows: 0,
                bytes_on_disk: 0,
            }),
            text_indexes: indexes.unwrap_or_default(),
            name: format!("{}.{}", table.database, table.name),
            is_fed,
        };
        Ok(table.growth(sources))
    }

    /// The answer, or `None` if this user may not have it: the rest of the plan is still useful.
    fn known<T>(
        &mut self,
        answer: Result<T, RequestError>,
        what: &str,
    ) -> Result<Option<T>, Error> {
        let error = match answer {
            Ok(answer) => return Ok(Some(answer)),
            Err(error) => error,
        };
        if error.code().is_none() {
            return Err(Error::caused("the server does not answer", error));
        }
        let note = format!(
            "user '{}' may not read {what}, so the plan omits it: {error}",
            self.options.connection.user
        );
        if !self.unseen.contains(&note) {
            self.unseen.push(note);
        }
        Ok(None)
    }

    /// Remarks that apply to most months.
    fn notes(&self, server_disk: &ServerRoom, time: &Time) -> Vec<String> {
        let inspected = self.inspected;
        let mut notes = vec![
            "row counts come from parts and include unmerged versions".to_owned(),
            format!("the time does not include {}", time.left_out),
        ];
        if !time.with_measured_inserts && !self.options.dry_run {
            notes.push(
                "after the first finished month, plans with the same state directory use its \
                 measured speed"
                    .to_owned(),
            );
        }
        let alike = server_disk
            .tables
            .chunk_by(|one, next| one.estimated_from == next.estimated_from);
        notes.extend(alike.map(|tables| {
            let names: Vec<&str> = tables.iter().map(|table| table.table.as_str()).collect();
            format!(
                "disk space for {} is estimated from {}; merges temporarily need more",
                names.join(" and "),
                tables[0].estimated_from
            )
        }));
        if self.options.subject.remote_lookup && inspected.has_more_traces {
            notes.push(
                "finding traces of other months groups all trace ids on the server, and \
                 observations waiting for them can take several GiB in the state directory"
                    .to_owned(),
            );
        }
        notes.extend(self.unseen.iter().cloned());
        notes
    }

    /// Describes existing state of the partition.
    fn state_in_words(&self) -> Option<String> {
        let directory = PartitionDir::new(&self.options.state_dir, self.options.share(), false);
        let place = directory.path.display();
        if let Some(holder) = directory.holder() {
            return Some(format!(
                "{holder} is already running this partition in {place}"
            ));
        }
        match Checkpoint::read(&directory.checkpoint()) {
            Ok(None) => None,
            Ok(Some(checkpoint)) if checkpoint.finished => Some(format!(
                "{place} says this partition is finished: a run would repeat it only with \
                 --restart"
            )),
            Ok(Some(checkpoint)) if self.options.earlier.continues() => Some(format!(
                "{place} holds an unfinished run ({}): the run would continue it",
                resume::progress(&checkpoint)
            )),
            Ok(Some(checkpoint)) => Some(format!(
                "{place} holds an unfinished run ({}): a run would need --resume or --restart",
                resume::progress(&checkpoint)
            )),
            Err(error) => Some(format!(
                "the checkpoint in {place} is unusable: {error}; a run would need --restart"
            )),
        }
    }
}
