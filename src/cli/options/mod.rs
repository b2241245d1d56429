//! The request, combined from command line, environment and `.env`, and validated. A job takes only
//! [`Options`], so nothing unchecked runs.

mod as_verify;
mod choice;
mod earlier;
mod engine;
mod segment_rows;
mod settings;
mod shard;
mod subject;
mod throttle;
mod until;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::as_verify::options_of_verify;
use self::settings::Settings;
use super::Environment;
use super::arguments::{RunArguments, SubjectArguments};
use super::selection::Selection;
use super::usage::is_command;
use crate::clickhouse::ConnectionOptions;
use crate::error::Error;
use crate::memory::{Budget, ByteSize};
use crate::partition::{Day, Partition, Shard, ShareOfMonth, is_of_month};
use crate::progress::log::LogFormat;
use crate::throttle::ThrottleOptions;

pub(crate) use choice::{Choice, Defaults};
pub(crate) use earlier::Earlier;
pub(crate) use engine::Engine;
pub use segment_rows::SegmentRows;
pub(crate) use settings::is_loopback;
pub(crate) use shard::shard_of;
pub(crate) use subject::Subject;
pub(crate) use throttle::parse_wishes;

/// Allowed values of `--part-bytes`.
const PART_BYTES: RangeInclusive<ByteSize> = ByteSize(1 << 20)..=ByteSize(4 << 30);

/// The request: the same job for each selected partition.
#[derive(Debug, Clone)]
pub struct Request {
    /// The selected partitions.
    pub selection: Selection,
    /// Continue with the next partition after a failure.
    pub keep_going: bool,
    /// The job, with an arbitrary partition.
    job: Options,
}

impl Request {
    /// Combines command line and environment.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind) with the name of the invalid setting.
    pub fn new(arguments: RunArguments, environment: &Environment) -> Result<Self, Error> {
        let selection = selection(&arguments, environment)?;
        let keep_going = arguments.keep_going;
        let partition = selection.single().unwrap_or(Partition::FIRST);
        Ok(Self {
            job: Options::new(arguments, environment, partition)?,
            selection,
            keep_going,
        })
    }

    /// Limits the request to one shard's days.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind) with `--no-remote-lookup`.
    pub fn for_shard(mut self, shard: Option<Shard>) -> Result<Self, Error> {
        if let Some(shard) = shard
            && !self.job.subject.remote_lookup
        {
            return Err(Error::configuration(format!(
                "--no-remote-lookup cannot be combined with shard {shard}: an observation's trace may lie on \
                 another shard's days, and would not be found; remove one of the two"
            )));
        }
        self.job.shard = shard;
        Ok(self)
    }

    /// The job for a partition.
    pub fn job(&self, partition: Partition) -> Options {
        Options {
            partition,
            ..self.job.clone()
        }
    }

    /// The options shared by all partitions: all but the partition itself.
    pub fn shared(&self) -> &Options {
        &self.job
    }
}

/// The cluster to work on, if all its shards were requested.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) with the name of the invalid setting.
pub(crate) fn cluster_of(
    arguments: &SubjectArguments,
    environment: &Environment,
) -> Result<Option<String>, Error> {
    if !arguments.all_shards && !environment.flag("ALL_SHARDS")? {
        return Ok(None);
    }
    let settings = Settings { environment };
    let name = settings.text(arguments.cluster.clone(), "CLICKHOUSE_CLUSTER_NAME");
    Ok(Some(name.unwrap_or_else(|| "default".to_owned())))
}

/// The format of standard error.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) with the name of the invalid setting.
pub(crate) fn log_format(
    arguments: &SubjectArguments,
    environment: &Environment,
) -> Result<LogFormat, Error> {
    Settings { environment }.log_format(arguments.log_format.clone())
}

/// The selected partitions, from the command line or else the environment.
fn selection(arguments: &RunArguments, environment: &Environment) -> Result<Selection, Error> {
    let subject = &arguments.subject;
    if !subject.partition.is_empty() {
        let texts = subject.partition.iter().map(String::as_str);
        if let Some(command) = texts.clone().find(|text| is_command(text)) {
            return Err(Error::configuration(format!(
                "--partition is '{command}', which is a command: put it first, as in `events-backfill \
                 {command} --partition 202406`"
            )));
        }
        return Selection::parse(texts).map_err(Error::configuration);
    }
    if subject.all_partitions {
        return Ok(Selection::All);
    }
    match (
        environment.get("PARTITION"),
        environment.flag("ALL_PARTITIONS")?,
    ) {
        (Some(text), false) => Selection::parse([text]).map_err(Error::configuration),
        (None, true) => Ok(Selection::All),
        (Some(_), true) => Err(Error::configuration(
            "PARTITION and ALL_PARTITIONS are both set: unset one of them, or use --partition or \
             --all-partitions",
        )),
        (None, false) => Err(Error::configuration(
            "no month given: use --partition YYYYMM, for example --partition 202406, or \
             --all-partitions",
        )
        .about("PARTITION")),
    }
}

/// What a command does with the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// Only reads it.
    Look,
    /// Only reads it, but reports what would prevent writing.
    Rehearse,
    /// Writes to it.
    Write,
}

/// A validated job for one partition.
#[derive(Debug, Clone)]
pub struct Options {
    /// The month.
    pub partition: Partition,
    /// The shard whose days to process; all days if `None`.
    pub shard: Option<Shard>,
    /// How to connect to ClickHouse.
    pub connection: ConnectionOptions,
    /// Database of the tables.
    pub database: String,
    /// Use the local table behind a Distributed one.
    pub local_tables: bool,
    /// Target table, if the user named one.
    pub target_table: Option<String>,
    /// Insert nothing.
    pub dry_run: bool,
    /// What to do with an earlier run in the state directory.
    pub earlier: Earlier,
    /// Keep the trace store after success.
    pub keep_traces: bool,
    /// State directory.
    pub state_dir: PathBuf,
    /// Memory limit of the process.
    pub memory_limit: ByteSize,
    /// How that memory is divided.
    pub budget: Budget,
    /// Segments processed in parallel.
    pub concurrency: usize,
    /// Maximum rows per part.
    pub batch_rows: usize,
    /// Maximum uncompressed bytes per part.
    pub part_bytes: ByteSize,
    /// Maximum rows per block read.
    pub block_rows: usize,
    /// Rows per segment.
    pub segment_rows: SegmentRows,
    /// What joins observations with their traces.
    pub(crate) engine: Engine,
    /// Retries after temporary errors.
    pub max_retries: u32,
    /// Interval at which changed traces are loaded again.
    pub reload_every: Duration,
    /// Speed limits and load thresholds.
    pub(crate) throttle: ThrottleOptions,
    /// Address at which to serve metrics.
    pub metrics_listen: Option<SocketAddr>,
    /// Which events to write.
    pub subject: Subject,
    /// Whether the resumed run records experiments. If the user left that to the tables, it stays as it
    /// was, whatever the tables have by now.
    pub experiments_so_far: Option<bool>,
    /// Allow a target that keeps duplicates.
    pub allow_duplicates: bool,
    /// File for the summary as JSON.
    pub report: Option<PathBuf>,
    /// File for the HTML page about the run.
    pub html: Option<PathBuf>,
    /// Print only errors and warnings.
    pub quiet: bool,
    /// Fail instead of warning about the tables.
    pub strict: bool,
    /// What the command does with the target.
    pub intent: Intent,
    /// The options to type after `verify --partition YYYYMM` to check what this run writes.
    pub options_of_verify: String,
}

impl Options {
    /// Combines command line and environment for a partition.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind) with the name of the invalid setting.
    fn new(
        arguments: RunArguments,
        environment: &Environment,
        partition: Partition,
    ) -> Result<Self, Error> {
        let earlier = Earlier::of(&arguments, environment)?;
        let options_of_verify = options_of_verify(&arguments);
        let subject = arguments.subject;
        let settings = Settings { environment };
        let dry_run = arguments.dry_run || environment.flag("DRY_RUN")?;
        if dry_run && earlier == Earlier::Resume {
            return Err(Error::configuration(
                "--resume cannot be combined with a dry run, which keeps no checkpoint: \
                 remove --resume",
            ));
        }
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        let concurrency = settings.number(
            arguments.concurrency,
            "--concurrency",
            "CONCURRENCY",
            processors.clamp(2, 4),
            1..=64,
        )?;
        let memory_limit = settings.size(
            arguments.memory_limit,
            "--memory-limit",
            "MEMORY_LIMIT",
            ByteSize(512 << 20),
        )?;
        let budget = Budget::new(memory_limit, concurrency).map_err(Error::configuration)?;
        let compression = settings.text(subject.compression.clone(), "COMPRESSION");
        let throttle = settings.throttle(arguments.throttle)?;
        let metrics_listen = settings.address(arguments.telling.metrics_listen)?;
        let mut connection = settings.connection(
            compression.as_deref(),
            subject.dangerously_accept_invalid_certificates,
        )?;
        connection.gives_way = throttle.thresholds.is_some();
        let batch_rows = settings.number(
            arguments.batch_size,
            "--batch-size",
            "BATCH_SIZE",
            1_000_000,
            1..=10_000_000,
        )?;
        let part_bytes = settings.size(
            arguments.part_bytes,
            "--part-bytes",
            "PART_BYTES",
            ByteSize(512 << 20),
        )?;
        if !PART_BYTES.contains(&part_bytes) {
            return Err(Error::configuration(format!(
                "--part-bytes is {part_bytes}: use a size from 1 MiB to 4 GiB"
            )));
        }
        let block_rows = settings.number(None, "", "STREAM_BLOCK_SIZE", 8_192, 1..=65_536)?;
        let state_dir = environment.state_dir(arguments.state_dir);
        let html = arguments.telling.html;
        for (flag, file) in [("--report", &subject.report), ("--html", &html)] {
            if let Some(file) = file {
                require_outside(flag, file, &state_dir)?;
            }
        }
        let segment_rows = settings.number_if_given(
            arguments.segment_rows,
            "--segment-rows",
            "SEGMENT_ROWS",
            1..=1_000_000_000,
        )?;
        let of_run = settings.subject(&subject)?;
        let engine = settings.engine(arguments.engine, &of_run, &throttle, segment_rows)?;
        let segment_rows = SegmentRows::new(segment_rows, engine, &budget, concurrency);
        Ok(Self {
            partition,
            shard: None,
            connection,
            database: settings
                .text(None, "CLICKHOUSE_DB")
                .unwrap_or_else(|| "default".to_owned()),
            local_tables: subject.local_tables || environment.flag("LOCAL_TABLES")?,
            target_table: settings.text(subject.target_table.clone(), "TARGET_TABLE"),
            dry_run,
            earlier,
            keep_traces: arguments.keep_traces,
            state_dir,
            memory_limit,
            budget,
            concurrency,
            batch_rows,
            part_bytes,
            block_rows,
            segment_rows,
            engine,
            max_retries: settings.number(None, "", "MAX_RETRIES", 8, 0..=1_000)?,
            reload_every: Duration::from_secs(settings.number(
                None,
                "",
                "RELOAD_SECONDS",
                900,
                1..=900,
            )?),
            throttle,
            metrics_listen,
            subject: of_run,
            experiments_so_far: None,
            allow_duplicates: arguments.allow_duplicates,
            report: subject.report,
            html,
            quiet: subject.quiet,
            strict: subject.strict,
            intent: match dry_run {
                true => Intent::Rehearse,
                false => Intent::Write,
            },
            options_of_verify,
        })
    }
}

impl Options {
    /// The days of the month to process.
    pub(crate) fn share(&self) -> ShareOfMonth {
        ShareOfMonth {
            partition: self.partition,
            shard: self.shard,
        }
    }

    /// The days whose traces are loaded.
    pub(crate) fn days_of_traces(&self) -> RangeInclusive<Day> {
        self.share()
            .days_with_margin(self.subject.trace_margin_days)
    }

    /// Whether nobody watches the run, so that it waits for what resolves itself instead of failing.
    pub(crate) fn is_unattended(&self) -> bool {
        self.earlier == Earlier::ResumeOrStart && self.intent == Intent::Write
    }

    /// Decides what the user left to the tables.
    pub fn settle(&mut self, defaults: Defaults) {
        let subject = &mut self.subject;
        subject.root_spans = subject.asked.root_spans.or(defaults.root_spans);
        let experiments = self.experiments_so_far.unwrap_or(defaults.experiments);
        subject.experiments = subject.asked.experiments.or(experiments);
    }
}

/// Rejects a report file that would overwrite a run's state or the state directory.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) with the flag.
pub(crate) fn require_outside(flag: &str, report: &Path, state_dir: &Path) -> Result<(), Error> {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let state_dir = absolute(state_dir);
    let report_path = absolute(report);
    let Ok(below) = report_path.strip_prefix(&state_dir) else {
        return Ok(());
    };
    match below
        .iter()
        .next()
        .map(|name| is_of_month(&name.to_string_lossy()))
    {
        Some(false) => Ok(()),
        Some(true) | None => Err(Error::configuration(format!(
            "{flag} points to {}, which holds the state of a run: choose a file outside the state \
             directory {}",
            report.display(),
            state_dir.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::arguments::Arguments;
    use super::*;
    use crate::clickhouse::Compression;
    use clap::Parser;

    fn options(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Options, Error> {
        let request = request(arguments, environment)?;
        Ok(request.job(request.selection.single().expect("one month is named")))
    }

    fn request(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Request, Error> {
        let arguments = std::iter::once(&"events-backfill").chain(arguments);
        Request::new(
            Arguments::parse_from(arguments).run,
            &Environment::of(environment),
        )
    }

    #[test]
    fn which_partitions_is_said_on_the_command_line_before_the_environment() {
        let selection = |arguments: &[&str], environment: &[(&str, &str)]| {
            request(arguments, environment).map(|request| request.selection)
        };
        let months = |text| Ok(Selection::parse([text]).unwrap());
        let (one, all) = (("PARTITION", "202401..202403"), ("ALL_PARTITIONS", "true"));
        let named = ["--partition", "202406", "--partition", "202401,202403"];
        let expected = months("202401,202403,202406");
        assert_eq!(selection(&named, &[]), expected);
        assert_eq!(selection(&named, &[one, all]), expected);
        assert_eq!(selection(&["--all-partitions"], &[one]), Ok(Selection::All));
        assert_eq!(selection(&[], &[one]), months("202401..202403"));
        let no = ("ALL_PARTITIONS", "false");
        assert_eq!(selection(&[], &[one, no]), months("202401..202403"));
        assert_eq!(selection(&[], &[all]), Ok(Selection::All));
        for environment in [&[one, all][..], &[no], &[("ALL_PARTITIONS", "some")]] {
            let error = selection(&[], environment).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{environment:?}");
        }
    }

    #[test]
    fn a_flag_counts_before_the_environment() {
        let variables = [
            ("PARTITION", "202401"),
            ("BATCH_SIZE", "77"),
            ("DRY_RUN", "true"),
        ];
        let merged = options(&["--partition", "202406"], &variables).unwrap();
        assert_eq!(merged.partition.to_string(), "202406");
        assert_eq!(merged.batch_rows, 77);
        assert!(merged.dry_run);
    }

    #[test]
    fn a_flag_on_earlier_runs_counts_before_the_environment() {
        let earlier = |flags: &[&str], environment: &[(&str, &str)]| {
            let arguments = [&["--partition", "202406"], flags].concat();
            options(&arguments, environment).map(|options| options.earlier)
        };
        let set = [("RESUME_OR_START", "true")];
        assert_eq!(earlier(&[], &[]), Ok(Earlier::Refuse));
        assert_eq!(earlier(&[], &set), Ok(Earlier::ResumeOrStart));
        assert_eq!(
            earlier(&["--resume-or-start"], &[]),
            Ok(Earlier::ResumeOrStart)
        );
        assert_eq!(earlier(&["--resume"], &set), Ok(Earlier::Resume));
        assert_eq!(earlier(&["--restart"], &set), Ok(Earlier::Restart));
        assert_eq!(earlier(&["--dry-run"], &set), Ok(Earlier::ResumeOrStart));
        assert!(earlier(&[], &[("RESUME_OR_START", "maybe")]).is_err());
    }

    #[test]
    fn root_spans_and_experiments_are_on_where_the_tables_suit_unless_turned_off() {
        let settled = |arguments: &[&str], environment: &[(&str, &str)], suits: bool| {
            let arguments = [&["--partition", "202406"], arguments].concat();
            options(&arguments, environment).map(|mut options| {
                options.settle(Defaults {
                    root_spans: suits,
                    experiments: suits,
                });
                let excludes = options.subject.exclude_dataset_items;
                (
                    options.subject.root_spans,
                    options.subject.experiments,
                    excludes,
                )
            })
        };
        let (on, off) = ((true, true, false), (false, false, false));
        let both = ["--root-spans", "--experiments"];
        let neither = ["--no-root-spans", "--no-experiments"];
        let both_set = [("ROOT_SPANS", "true"), ("EXPERIMENTS", "true")];
        let neither_set = [("NO_ROOT_SPANS", "true"), ("NO_EXPERIMENTS", "true")];
        let both_false = [("ROOT_SPANS", "false"), ("EXPERIMENTS", "false")];
        let nothing_said = [("NO_ROOT_SPANS", "false"), ("NO_EXPERIMENTS", "false")];
        assert_eq!(settled(&[], &[], true), Ok(on));
        assert_eq!(settled(&[], &nothing_said, true), Ok(on));
        assert_eq!(settled(&[], &[], false), Ok(off));
        for suits in [true, false] {
            assert_eq!(settled(&both, &[], suits), Ok(on));
            assert_eq!(settled(&[], &both_set, suits), Ok(on));
            assert_eq!(settled(&both, &neither_set, suits), Ok(on));
            assert_eq!(settled(&neither, &[], suits), Ok(off));
            assert_eq!(settled(&[], &neither_set, suits), Ok(off));
            assert_eq!(settled(&[], &both_false, suits), Ok(off));
            assert_eq!(settled(&neither, &both_set, suits), Ok(off));
        }
        let contradiction = [("EXPERIMENTS", "true"), ("NO_EXPERIMENTS", "true")];
        let error = settled(&[], &contradiction, true).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("NO_EXPERIMENTS"), "{error}");
        assert_eq!(settled(&both, &contradiction, true), Ok(on));
        let exclude = ["--exclude-dataset-items"];
        assert_eq!(settled(&exclude, &[], true), Ok((true, false, true)));
        let with_both = ["--exclude-dataset-items", "--experiments"];
        assert_eq!(settled(&with_both, &[], true), Ok(on));
        assert_eq!(settled(&exclude, &both_set, true), Ok(on));
        let only = ["--only", "root-spans", "--no-experiments"];
        assert_eq!(settled(&only, &[], false), Ok((true, false, false)));
    }

    #[test]
    fn what_a_run_has_settled_stays_as_it_was() {
        let mut options = options(&["--partition", "202406"], &[]).unwrap();
        options.experiments_so_far = Some(false);
        options.settle(Defaults {
            root_spans: true,
            experiments: true,
        });
        assert!(options.subject.root_spans && !options.subject.experiments);
    }

    #[test]
    fn empty_variables_are_as_if_not_there() {
        let variables = [
            ("PARTITION", "202401"),
            ("BATCH_SIZE", ""),
            ("DRY_RUN", " "),
        ];
        let merged = options(&[], &variables).unwrap();
        assert_eq!(merged.batch_rows, 1_000_000);
        assert!(!merged.dry_run);
    }

    #[test]
    fn wrong_values_are_refused_with_the_name_of_the_setting() {
        for (variables, word) in [
            ([("BATCH_SIZE", "many")], "BATCH_SIZE"),
            ([("DRY_RUN", "maybe")], "DRY_RUN"),
            ([("MEMORY_LIMIT", "12 apples")], "12 apples"),
            ([("CONCURRENCY", "0")], "CONCURRENCY"),
            ([("COMPRESSION", "gzip")], "gzip"),
            ([("CLICKHOUSE_URL", "localhost")], "CLICKHOUSE_URL"),
            (
                [("CLICKHOUSE_URL", "tcp://localhost:9000")],
                "CLICKHOUSE_URL",
            ),
            (
                [("CLICKHOUSE_URL", "http://me:pass@localhost")],
                "CLICKHOUSE_USER",
            ),
            ([("CLICKHOUSE_PASSWORD_FILE", "/nowhere")], "/nowhere"),
        ] {
            let error = options(&["--partition", "202406"], &variables).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(word), "{error}");
        }
        for partition in ["2024-06", "202413", "202400", "20240", "junk42", "196912"] {
            assert!(
                options(&["--partition", partition], &[]).is_err(),
                "{partition}"
            );
        }
        assert!(options(&[], &[]).is_err());
    }

    #[test]
    fn compression_is_for_other_machines() {
        let compression = |url| {
            options(&["--partition", "202406"], &[("CLICKHOUSE_URL", url)])
                .unwrap()
                .connection
                .compression
        };
        for url in [
            "http://localhost:8123",
            "http://127.0.0.2",
            "https://[::1]:8443",
        ] {
            assert_eq!(compression(url), Compression::None, "{url}");
        }
        for url in ["http://clickhouse:8123", "https://10.0.0.1:8443"] {
            assert_eq!(compression(url), Compression::Lz4, "{url}");
        }
    }

    #[test]
    fn passwords_are_never_shown() {
        let shown = format!(
            "{:?}",
            options(
                &["--partition", "202406"],
                &[("CLICKHOUSE_PASSWORD", "hunter2")]
            )
            .unwrap()
        );
        assert!(!shown.contains("hunter2"));
    }
}
