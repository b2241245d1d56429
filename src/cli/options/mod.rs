//! What the user asked for: command line, environment and `.env` put together
//! and validated. A job takes [`Options`] only, so nothing unchecked is run.

mod choice;
mod earlier;
mod settings;
mod shard;
mod subject;
mod throttle;
mod until;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::settings::Settings;
use super::Environment;
use super::arguments::{RunArguments, SubjectArguments};
use super::selection::Selection;
use crate::clickhouse::ConnectionOptions;
use crate::error::Error;
use crate::memory::{Budget, ByteSize};
use crate::partition::{Day, Partition, Shard, ShareOfMonth, is_of_month};
use crate::progress::log::LogFormat;
use crate::throttle::ThrottleOptions;

pub(crate) use choice::{Choice, Defaults};
pub(crate) use earlier::Earlier;
pub(crate) use shard::shard_of;
pub(crate) use subject::Subject;
pub(crate) use throttle::parse_wishes;

/// What `--part-bytes` may be.
const PART_BYTES: RangeInclusive<ByteSize> = ByteSize(1 << 20)..=ByteSize(4 << 30);

/// What was asked for: the same job for each of some partitions.
#[derive(Debug, Clone)]
pub struct Request {
    /// Which partitions.
    pub selection: Selection,
    /// Go on with the next partition after one has failed.
    pub keep_going: bool,
    /// The job; its partition says nothing.
    job: Options,
}

impl Request {
    /// Puts everything together.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind), with a sentence that names the setting.
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

    /// The same for one of the processes among which the days are shared out.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind) where what is asked for cannot be shared out.
    pub fn for_shard(mut self, shard: Option<Shard>) -> Result<Self, Error> {
        if let Some(shard) = shard
            && !self.job.subject.remote_lookup
        {
            return Err(Error::configuration(format!(
                "--no-remote-lookup does not go with shard {shard}: the trace of an observation may lie \
                 on the days of another shard, and could not be found"
            )));
        }
        self.job.shard = shard;
        Ok(self)
    }

    /// The job for one of the partitions.
    pub fn job(&self, partition: Partition) -> Options {
        Options {
            partition,
            ..self.job.clone()
        }
    }

    /// What is the same for all partitions: everything but the partition.
    pub fn shared(&self) -> &Options {
        &self.job
    }
}

/// The cluster on every shard of which the same is to be done, if that is asked for.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind), with a sentence that names the setting.
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

/// How lines on standard error look.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind), with a sentence that names the setting.
pub(crate) fn log_format(
    arguments: &SubjectArguments,
    environment: &Environment,
) -> Result<LogFormat, Error> {
    Settings { environment }.log_format(arguments.log_format.clone())
}

/// Which partitions: the command line counts before the environment.
fn selection(arguments: &RunArguments, environment: &Environment) -> Result<Selection, Error> {
    let subject = &arguments.subject;
    if !subject.partition.is_empty() {
        let texts = subject.partition.iter().map(String::as_str);
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
            "PARTITION and ALL_PARTITIONS are both set: take one of them away, or say --partition \
             or --all-partitions",
        )),
        (None, false) => Err(Error::configuration(
            "which month? Name its partition with --partition YYYYMM, for example \
             --partition 202406, or say --all-partitions",
        )),
    }
}

/// What is to become of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// It is looked at.
    Look,
    /// It is to be written to later: what would be in the way is told.
    Rehearse,
    /// It is written to.
    Write,
}

/// A validated job for one partition.
#[derive(Debug, Clone)]
pub struct Options {
    /// The month.
    pub partition: Partition,
    /// The shard that does its days of it, if not all are done.
    pub shard: Option<Shard>,
    /// Where ClickHouse is.
    pub connection: ConnectionOptions,
    /// Database of the tables.
    pub database: String,
    /// Use the table behind one that is Distributed.
    pub local_tables: bool,
    /// Table to write to, if the user named one.
    pub target_table: Option<String>,
    /// Insert nothing.
    pub dry_run: bool,
    /// What becomes of a run that is in the state directory.
    pub earlier: Earlier,
    /// Keep the trace store after success.
    pub keep_traces: bool,
    /// Directory of all state.
    pub state_dir: PathBuf,
    /// Memory the process may take.
    pub memory_limit: ByteSize,
    /// How it is divided.
    pub budget: Budget,
    /// Segments at once.
    pub concurrency: usize,
    /// Rows that the server gathers for a part.
    pub batch_rows: usize,
    /// Bytes that are enough for one.
    pub part_bytes: ByteSize,
    /// Most rows in one block that is read.
    pub block_rows: usize,
    /// Rows per segment.
    pub segment_rows: u64,
    /// Tries after a passing error.
    pub max_retries: u32,
    /// How often traces that changed are loaded again.
    pub reload_every: Duration,
    /// How fast it may go.
    pub(crate) throttle: ThrottleOptions,
    /// Where to serve metrics.
    pub metrics_listen: Option<SocketAddr>,
    /// What is to become of which rows.
    pub subject: Subject,
    /// Whether the run that goes on says to which experiment spans belong: where the user leaves
    /// it to the tables, it stays as it was, whatever the tables have by now.
    pub experiments_so_far: Option<bool>,
    /// Write to a table that keeps duplicates.
    pub allow_duplicates: bool,
    /// Where to write the summary as JSON.
    pub report: Option<PathBuf>,
    /// Where to write the page about the run.
    pub html: Option<PathBuf>,
    /// Print nothing but errors.
    pub quiet: bool,
    /// End where there would be a warning about the tables.
    pub strict: bool,
    /// What is to become of the target.
    pub intent: Intent,
}

impl Options {
    /// Puts everything together for one partition.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind), with a sentence that names the setting.
    fn new(
        arguments: RunArguments,
        environment: &Environment,
        partition: Partition,
    ) -> Result<Self, Error> {
        let earlier = Earlier::of(&arguments, environment)?;
        let subject = arguments.subject;
        let settings = Settings { environment };
        let dry_run = arguments.dry_run || environment.flag("DRY_RUN")?;
        if dry_run && earlier == Earlier::Resume {
            return Err(Error::configuration(
                "--resume goes with no dry run: a dry run keeps no checkpoint",
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
                "--part-bytes: {part_bytes} is not from 1 MiB to 4 GiB"
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
            segment_rows: settings.number(
                arguments.segment_rows,
                "--segment-rows",
                "SEGMENT_ROWS",
                250_000,
                1..=1_000_000_000,
            )?,
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
            subject: settings.subject(&subject)?,
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
        })
    }
}

impl Options {
    /// What is done of the month.
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

    /// Whether nobody watches the run: what passes by itself is waited for, and is no error of the
    /// configuration.
    pub(crate) fn is_unattended(&self) -> bool {
        self.earlier == Earlier::ResumeOrStart && self.intent == Intent::Write
    }

    /// Decides what the user has left to the tables.
    pub fn settle(&mut self, defaults: Defaults) {
        let subject = &mut self.subject;
        subject.root_spans = subject.asked.root_spans.or(defaults.root_spans);
        let experiments = self.experiments_so_far.unwrap_or(defaults.experiments);
        subject.experiments = subject.asked.experiments.or(experiments);
    }
}

/// Refuses a report that would take the place of a month's state, or of the directory of all of it.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) with the flag that names it.
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
            "{flag} names {}, where the state of a run is: name a file outside of the state \
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
