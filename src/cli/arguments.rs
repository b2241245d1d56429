//! The command line's flags and help. `options` combines them with the environment and `.env`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Fills the ClickHouse events table of Langfuse v4 from observations and traces, month by month,
/// in bounded memory.
///
/// Each observation becomes an event that carries its trace's attributes: user, session, tags,
/// release, name, version, metadata and more. Traces wait in a store on disk, so memory does not
/// grow with their number.
///
/// Options with a variable in brackets can also be set in the environment or in a file .env in the
/// current directory. The command line wins over the environment, and the environment over .env.
/// Set the password in CLICKHOUSE_PASSWORD, or name a file that holds it in
/// CLICKHOUSE_PASSWORD_FILE.
#[derive(Debug, Parser)]
#[command(version = env!("EVENTS_BACKFILL_VERSION"), max_term_width = 100, before_help = EXAMPLES, after_help = SETTINGS)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// The command; without one, a backfill runs.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The options of a run.
    #[command(flatten)]
    pub run: RunArguments,

    /// The options for watching it.
    #[command(flatten)]
    pub telling: TellingArguments,
}

/// The commands other than a run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check every event against its observation and trace. Read-only
    Verify(VerifyArguments),
    /// Rewrite only the events that verify finds missing, different or stale
    Repair(RepairArguments),
    /// Estimate a run's rows, segments, disk space and duration. Read-only
    Plan(PlanArguments),
    /// Show the progress of the runs in the state directory
    Status(StatusArguments),
    /// Write an HTML page about the runs in the state directory: charts, counts, the results of verify and
    /// what is left to do
    Report(ReportArguments),
    /// Pause the active runs once their current segments and days of traces are finished
    Pause(StateDirArguments),
    /// Resume paused runs
    Continue(StateDirArguments),
    /// Change the speed of the active runs
    Set(SetArguments),
    /// Write the man pages and the completions for bash, zsh and fish
    #[command(hide = true)]
    Generate(GenerateArguments),
}

impl Arguments {
    /// The options that a run, plan, verify and repair share; `None` for commands that use no tables.
    pub(crate) fn subject(&self) -> Option<&SubjectArguments> {
        match &self.command {
            None => Some(&self.run.subject),
            Some(Command::Verify(arguments)) => Some(&arguments.subject),
            Some(Command::Repair(arguments)) => Some(&arguments.subject),
            Some(Command::Plan(arguments)) => Some(&arguments.run.subject),
            Some(_) => None,
        }
    }
}

impl Command {
    /// Whether the command reads or controls runs that exist, and so has no log format option.
    pub(crate) fn is_about_runs(&self) -> bool {
        match self {
            Command::Status(_)
            | Command::Report(_)
            | Command::Pause(_)
            | Command::Continue(_)
            | Command::Set(_) => true,
            Command::Verify(_) | Command::Repair(_) | Command::Plan(_) | Command::Generate(_) => {
                false
            }
        }
    }
}

/// Options of `pause` and `continue`.
#[derive(Debug, Args)]
pub struct StateDirArguments {
    /// State directory of the runs [env: STATE_DIR] [default: ./state]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// Options of `set`.
#[derive(Debug, Args)]
pub struct SetArguments {
    /// The runs to change.
    #[command(flatten)]
    pub runs: StateDirArguments,

    /// One or more of concurrency=N, max-rows-per-second=N and max-bytes-per-second=SIZE, for example
    /// max-rows-per-second=20000; the value off removes a limit
    #[arg(required = true, value_name = "NAME=VALUE")]
    pub changes: Vec<String>,
}

/// Options of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArguments {
    /// The months, tables and events.
    #[command(flatten)]
    pub subject: SubjectArguments,

    /// State directory of the runs. Results are stored there for `report`
    /// [env: STATE_DIR] [default: ./state]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// Options of `repair`.
#[derive(Debug, Args)]
pub struct RepairArguments {
    /// The months, tables and events.
    #[command(flatten)]
    pub subject: SubjectArguments,

    /// Then merge the month in the target and in the tables that its views fill, so that no row is
    /// counted twice. Can take long
    #[arg(long, help_heading = HOW)]
    pub optimize: bool,

    /// Report what needs repair, but write nothing [env: DRY_RUN]
    #[arg(long, conflicts_with = "optimize", help_heading = HOW)]
    pub dry_run: bool,

    /// Continue an interrupted repair with what it had found, instead of comparing again
    #[arg(long, help_heading = HOW)]
    pub resume: bool,

    /// Directory for checkpoints and results [env: STATE_DIR] [default: ./state]
    #[arg(long, value_name = "DIR", help_heading = HOW)]
    pub state_dir: Option<PathBuf>,

    /// Memory limit of this process [env: MEMORY_LIMIT] [default: 512MiB]
    #[arg(long, value_name = "SIZE", help_heading = HOW)]
    pub memory_limit: Option<String>,

    /// Segments processed in parallel
    /// [env: CONCURRENCY] [default: number of processors, 2 to 4]
    #[arg(long, value_name = "N", help_heading = HOW)]
    pub concurrency: Option<String>,

    /// Maximum rows per part written to the target; --part-bytes caps its bytes
    /// [env: BATCH_SIZE] [default: 1000000]
    #[arg(long, value_name = "N", help_heading = HOW)]
    pub batch_size: Option<String>,

    /// Maximum uncompressed bytes per part, which the server holds in memory for each segment; lowered
    /// if the server has too little [env: PART_BYTES] [default: 512MiB]
    #[arg(long, value_name = "SIZE", help_heading = HOW)]
    pub part_bytes: Option<String>,

    /// Throttling.
    #[command(flatten)]
    pub throttle: ThrottleArguments,
}

/// Options of `plan`.
#[derive(Debug, Args)]
pub struct PlanArguments {
    /// All options of a run except `--html` and `--metrics-listen`, so that `plan` can be put before a
    /// run's command line.
    #[command(flatten)]
    pub run: RunArguments,

    /// Print the plan as JSON with exact numbers; for a single month
    #[arg(long)]
    pub json: bool,
}

/// Options of `status`.
#[derive(Debug, Args)]
pub struct StatusArguments {
    /// State directory of the runs. Repeatable, for shards that have one each
    /// [env: STATE_DIR] [default: ./state]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Vec<PathBuf>,

    /// Print the status as JSON with exact numbers
    #[arg(long)]
    pub json: bool,
}

/// Options of `report`.
#[derive(Debug, Args)]
pub struct ReportArguments {
    /// State directory of the runs. Repeatable, for shards that have one each
    /// [env: STATE_DIR] [default: ./state]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Vec<PathBuf>,

    /// HTML file to write
    #[arg(long, value_name = "FILE", required = true)]
    pub html: PathBuf,
}

/// Options of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArguments {
    /// Directory laid out like /usr/local/share or ~/.local/share
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// Options that define which events are written: the same for a run, plan, verify and repair.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Which events are written")]
pub struct SubjectArguments {
    /// Months, newest first: 202406, a list (202404,202406) or an inclusive range (202404..202406).
    /// Repeatable [env: PARTITION]
    #[arg(long, value_name = "YYYYMM")]
    pub partition: Vec<String>,

    /// All months that have rows, newest first [env: ALL_PARTITIONS]
    #[arg(long, conflicts_with = "partition")]
    pub all_partitions: bool,

    /// Table to write events to
    /// [env: TARGET_TABLE] [default: events_full where it exists, else events]
    #[arg(long, value_name = "NAME")]
    pub target_table: Option<String>,

    /// Also write a root span for each trace, with its input, output and attributes and the span_id
    /// t-<trace_id> [env: ROOT_SPANS] [default: on; off if the target is an older table without the
    /// column experiment_id]
    #[arg(long)]
    pub root_spans: bool,

    /// Write no root spans [env: NO_ROOT_SPANS]
    #[arg(long, conflicts_with_all = ["root_spans", "only"])]
    pub no_root_spans: bool,

    /// Write only these events
    #[arg(long, value_name = "WHAT")]
    pub only: Option<Only>,

    /// Record in the spans of dataset runs which experiment and item they belong to
    /// [env: EXPERIMENTS] [default: on; off if there are no dataset run items, if the target is an older
    /// table without the column experiment_id, and with --exclude-dataset-items]
    #[arg(long)]
    pub experiments: bool,

    /// Write the spans of dataset runs without their experiment and item [env: NO_EXPERIMENTS]
    #[arg(long, conflicts_with = "experiments")]
    pub no_experiments: bool,

    /// Leave out the observations and root spans of traces that belong to a dataset run. No effect
    /// with --experiments, which writes them with their experiment [env: EXCLUDE_DATASET_ITEMS]
    #[arg(long)]
    pub exclude_dataset_items: bool,

    /// Don't add the trace's metadata to the observation's [env: NO_TRACE_METADATA]
    #[arg(long)]
    pub no_trace_metadata: bool,

    /// Also load the traces of this many days before and after the month, for observations near its
    /// edges [env: TRACE_MARGIN_DAYS] [default: 1]
    #[arg(long, value_name = "N")]
    pub trace_margin_days: Option<String>,

    /// Don't search other months for traces outside the loaded days; their observations get no trace
    /// attributes [env: NO_REMOTE_LOOKUP]
    #[arg(long)]
    pub no_remote_lookup: bool,

    /// Leave rows that changed after this time to Langfuse: 2026-11-26T22:00:00+01:00, or
    /// '2026-11-26 21:00:00' in UTC [env: UNTIL] [default: one hour before the run if Langfuse
    /// has written rows to the target, otherwise no limit]
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,

    /// Compression of the traffic with ClickHouse; auto is none on this machine, LZ4 elsewhere
    /// [env: COMPRESSION] [default: auto]
    #[arg(long, value_name = "auto|lz4|none", help_heading = "Connection")]
    pub compression: Option<String>,

    /// Work on every shard of a ClickHouse cluster: one process per shard, all in parallel, each with
    /// its state in STATE_DIR/shard-N [env: ALL_SHARDS]
    #[arg(long, help_heading = "Connection")]
    pub all_shards: bool,

    /// Cluster for --all-shards, as named in system.clusters
    /// [env: CLICKHOUSE_CLUSTER_NAME] [default: default]
    #[arg(long, value_name = "NAME", help_heading = "Connection")]
    pub cluster: Option<String>,

    /// Use the local table behind a Distributed one, and so this server's shard alone. Set by
    /// --all-shards for its processes [env: LOCAL_TABLES]
    #[arg(long, help_heading = "Connection")]
    pub local_tables: bool,

    /// Accept any TLS certificate. Anyone on the network path can then read and alter the traffic
    #[arg(long, help_heading = "Connection")]
    pub dangerously_accept_invalid_certificates: bool,

    /// Write the summary to this file as JSON
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub report: Option<PathBuf>,

    /// Fail instead of warning: rows hidden from the user, a TTL that deletes rows of the month, a
    /// missing right, or a target that Langfuse v4 doesn't read
    #[arg(long, help_heading = HOW)]
    pub strict: bool,

    /// Print only errors and warnings
    #[arg(long, help_heading = "Output")]
    pub quiet: bool,

    /// Format of standard error: text, or json with one object per line (time, level, message)
    /// [env: LOG_FORMAT] [default: text]
    #[arg(long, value_name = "text|json", help_heading = "Output")]
    pub log_format: Option<String>,
}

/// Values of `--only`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Only {
    /// Root spans of traces.
    RootSpans,
}

/// Options of a run.
#[derive(Debug, Default, Args)]
pub struct RunArguments {
    /// The months, tables and events.
    #[command(flatten)]
    pub subject: SubjectArguments,

    /// Read and convert everything, but insert nothing [env: DRY_RUN]
    #[arg(long, help_heading = HOW)]
    pub dry_run: bool,

    /// Continue the unfinished run in the state directory; with several months, start those
    /// without one
    #[arg(long, conflicts_with = "restart", help_heading = HOW)]
    pub resume: bool,

    /// Discard the run in the state directory and start over; with several months, all their runs
    #[arg(long, help_heading = HOW)]
    pub restart: bool,

    /// Continue the unfinished run, or start one: the same command line for the first start and every
    /// restart. Waits for a server that is down and for an earlier process to end
    /// [env: RESUME_OR_START]
    #[arg(long, conflicts_with_all = ["resume", "restart"], help_heading = HOW)]
    pub resume_or_start: bool,

    /// Process this share of each month's days, as one of up to 28 processes: 3/8 is the third of
    /// eight. Each loads only the traces of its own days [env: SHARD, or
    /// JOB_COMPLETION_INDEX and JOB_COMPLETIONS in a Kubernetes Indexed Job] [default: all days]
    #[arg(long, value_name = "K/N", help_heading = HOW)]
    pub shard: Option<String>,

    /// After a failed month, continue with the next unless the server is unreachable or the tables
    /// changed
    #[arg(long, help_heading = HOW)]
    pub keep_going: bool,

    /// Keep the trace store after success
    #[arg(long, help_heading = HOW)]
    pub keep_traces: bool,

    /// Directory for checkpoints and the trace store, which takes about 100 bytes per trace, more with
    /// long metadata
    /// [env: STATE_DIR] [default: ./state]
    #[arg(long, value_name = "DIR", help_heading = HOW)]
    pub state_dir: Option<PathBuf>,

    /// Memory limit of this process [env: MEMORY_LIMIT] [default: 512MiB]
    #[arg(long, value_name = "SIZE", help_heading = HOW)]
    pub memory_limit: Option<String>,

    /// Segments processed in parallel
    /// [env: CONCURRENCY] [default: number of processors, 2 to 4]
    #[arg(long, value_name = "N", help_heading = HOW)]
    pub concurrency: Option<String>,

    /// Maximum rows per part written to the target; --part-bytes caps its bytes
    /// [env: BATCH_SIZE] [default: 1000000]
    #[arg(long, value_name = "N", help_heading = HOW)]
    pub batch_size: Option<String>,

    /// Maximum uncompressed bytes per part, which the server holds in memory for each segment; lowered
    /// if the server has too little [env: PART_BYTES] [default: 512MiB]
    #[arg(long, value_name = "SIZE", help_heading = HOW)]
    pub part_bytes: Option<String>,

    /// Rows per segment, the unit of work; raised if the month has so many parts that short segments
    /// would reread too much [env: SEGMENT_ROWS] [default: 250000, with --engine clickhouse up to
    /// 500000, as --memory-limit allows]
    #[arg(long, value_name = "N", help_heading = HOW)]
    pub segment_rows: Option<String>,

    /// What joins observations with their traces: embedded, with a trace store in the state directory, or
    /// clickhouse, the server itself, so that inputs and outputs do not travel to this machine and back
    /// [env: ENGINE] [default: embedded]
    #[arg(long, value_name = "NAME", help_heading = HOW)]
    pub engine: Option<String>,

    /// Allow a target that is not a ReplacingMergeTree. A second run then adds every row again
    #[arg(long, help_heading = HOW)]
    pub allow_duplicates: bool,

    /// Throttling.
    #[command(flatten)]
    pub throttle: ThrottleArguments,

    /// Copied from the top level, so that `plan` does not offer these options.
    #[arg(skip)]
    pub telling: TellingArguments,
}

/// Options for watching a run.
#[derive(Debug, Default, Args)]
pub struct TellingArguments {
    /// Write an HTML page about the run to this file: charts, counts and what is left to do
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub html: Option<PathBuf>,

    /// Serve Prometheus metrics at http://ADDRESS/metrics, and /healthz and /readyz, during the run; for
    /// example 127.0.0.1:9464 [env: METRICS_LISTEN] [default: off]
    #[arg(long, value_name = "ADDRESS", help_heading = "Output")]
    pub metrics_listen: Option<String>,
}

/// How fast a run may go, and which signs of load on the server slow it down.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Throttling")]
pub struct ThrottleArguments {
    /// Run at full speed: don't slow down for a busy server, and don't yield to other queries and
    /// processes [env: NO_THROTTLE]
    #[arg(long)]
    pub no_throttle: bool,

    /// Maximum events written per second [env: MAX_ROWS_PER_SECOND] [default: no limit]
    #[arg(long, value_name = "N")]
    pub max_rows_per_second: Option<String>,

    /// Maximum uncompressed bytes of events written per second
    /// [env: MAX_BYTES_PER_SECOND] [default: no limit]
    #[arg(long, value_name = "SIZE")]
    pub max_bytes_per_second: Option<String>,

    /// Start segments only at this time of day, in the machine's time zone or a named one: 22:00-06:00
    /// or '22:00-06:00 Europe/Berlin' [env: WINDOW] [default: always]
    #[arg(long, value_name = "TIMES")]
    pub window: Option<String>,

    /// Slow down above this many active parts in one partition [env: MAX_PARTS] [default: half the
    /// number at which the server delays or rejects inserts]
    #[arg(long, value_name = "N")]
    pub max_parts: Option<String>,

    /// Slow down above this many concurrent merges
    /// [env: MAX_MERGES] [default: one fewer than the server's merge threads]
    #[arg(long, value_name = "N")]
    pub max_merges: Option<String>,

    /// Slow down above this replication delay [env: MAX_REPLICA_DELAY] [default: 60]
    #[arg(long, value_name = "SECONDS")]
    pub max_replica_delay: Option<String>,

    /// Slow down above this many entries in a replica's queue [env: MAX_REPLICA_QUEUE] [default: 200]
    #[arg(long, value_name = "N")]
    pub max_replica_queue: Option<String>,

    /// Slow down above this share of the server's memory [env: MAX_SERVER_MEMORY] [default: 85]
    #[arg(long, value_name = "PERCENT")]
    pub max_server_memory: Option<String>,

    /// Slow down above this many concurrent queries of others
    /// [env: MAX_QUERIES] [default: 4 for each core, at least 8]
    #[arg(long, value_name = "N")]
    pub max_queries: Option<String>,

    /// Slow down above this many queries of others that have run for ten seconds
    /// [env: MAX_SLOW_QUERIES] [default: 4]
    #[arg(long, value_name = "N")]
    pub max_slow_queries: Option<String>,

    /// Slow down when inserts take this many times as long as at first
    /// [env: MAX_INSERT_SLOWDOWN] [default: 5]
    #[arg(long, value_name = "N")]
    pub max_insert_slowdown: Option<String>,
}

/// Heading of the options that say how a run or repair works.
const HOW: &str = "Run options";

const EXAMPLES: &str = "\
Examples:
  Try a month without writing:
    events-backfill --partition 202406 --dry-run
  Backfill it, with state on a large disk:
    events-backfill --partition 202406 --state-dir /data/backfill
  Continue it after an interruption:
    events-backfill --partition 202406 --state-dir /data/backfill --resume
  Backfill all months, even if some fail; then continue with those that are not finished:
    events-backfill --all-partitions --state-dir /data/backfill --keep-going
    events-backfill --all-partitions --state-dir /data/backfill --resume
  Only at night, with at most 20,000 rows per second:
    events-backfill --all-partitions --window 22:00-06:00 --max-rows-per-second 20000
  Use little memory, and write the summary as JSON:
    events-backfill --partition 202406 --memory-limit 256MiB --quiet --report summary.json";

const SETTINGS: &str = "\
Further settings, in the environment or .env only:
  CLICKHOUSE_URL            address of ClickHouse's HTTP interface, or those of several replicas,
                            separated by commas [default: http://localhost:8123]
  CLICKHOUSE_USER           user name [default: default]
  CLICKHOUSE_PASSWORD       password; or name a file that holds it in CLICKHOUSE_PASSWORD_FILE
  CLICKHOUSE_DB             database of the Langfuse tables [default: default]
  SSL_CERT_FILE             file of CA certificates [default: those of the machine]
  STREAM_BLOCK_SIZE         maximum rows per block read [default: 8192]
  RELOAD_SECONDS            interval at which changed traces are loaded again [default: 900]
  MAX_RETRIES               retries of a segment after temporary errors [default: 8]

Exit codes: 0 done, 1 failed, 2 usage or configuration error, 129, 130 or 143 interrupted.";
