//! The words of the command line. What they mean, together with the
//! environment and `.env`, is worked out in `options`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Fills Langfuse's ClickHouse events table from its observations and traces, one
/// monthly partition after the other, in little memory.
///
/// Every observation of the partition is written as an event, with the
/// attributes of its trace (user, session, tags, release, name, version,
/// metadata, …). Traces are kept in a local store on disk meanwhile, so memory
/// does not grow with their number.
///
/// Options with a name in brackets can also be given under that name in the
/// environment, or in a file .env in the current directory. An option on the command line
/// counts before the environment, and the environment before .env. The
/// password comes from CLICKHOUSE_PASSWORD, or from the file named by
/// CLICKHOUSE_PASSWORD_FILE.
#[derive(Debug, Parser)]
#[command(version = env!("EVENTS_BACKFILL_VERSION"), max_term_width = 100, before_help = EXAMPLES, after_help = SETTINGS)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// What to do, if not a run.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// What to run.
    #[command(flatten)]
    pub run: RunArguments,

    /// What tells of it.
    #[command(flatten)]
    pub telling: TellingArguments,
}

/// What the program does besides running.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Prove that the events are what observations and traces make of them; writes nothing
    Verify(VerifyArguments),
    /// Write what verify finds missing, different or stale, and nothing else
    Repair(RepairArguments),
    /// Say what a run would do: rows, segments, bytes, disk and time; writes nothing
    Plan(PlanArguments),
    /// Say how far the runs in the state directory are
    Status(StatusArguments),
    /// Write a page about the runs in the state directory: charts, counts, what verify said, and what is
    /// left to do
    Report(ReportArguments),
    /// Have the runs that are at work begin no segment and load no day of traces until they are told to
    /// continue; what is under way is finished
    Pause(StateDirArguments),
    /// Have paused runs go on
    Continue(StateDirArguments),
    /// Have the runs that are at work go faster or slower
    Set(SetArguments),
    /// Write the completions of bash, zsh and fish, and the man pages
    #[command(hide = true)]
    Generate(GenerateArguments),
}

impl Arguments {
    /// What a run, its plan, its proof or a repair is about; nothing where it is about no tables.
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
    /// Whether it asks runs, or tells them something, and has no other options.
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

/// Which runs.
#[derive(Debug, Args)]
pub struct StateDirArguments {
    /// Directory of the checkpoints [env: STATE_DIR] [default: ./state]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// How fast they are to go.
#[derive(Debug, Args)]
pub struct SetArguments {
    /// Which runs.
    #[command(flatten)]
    pub runs: StateDirArguments,

    /// concurrency=1, max-rows-per-second=20000 or max-bytes-per-second=20MiB; off takes a limit away
    #[arg(required = true, value_name = "NAME=VALUE")]
    pub changes: Vec<String>,
}

/// A proof.
#[derive(Debug, Args)]
pub struct VerifyArguments {
    /// What it is about.
    #[command(flatten)]
    pub subject: SubjectArguments,

    /// Directory of the runs' checkpoints: what is found is kept there too, for `report`
    /// [env: STATE_DIR] [default: ./state]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// A repair.
#[derive(Debug, Args)]
pub struct RepairArguments {
    /// What it is about.
    #[command(flatten)]
    pub subject: SubjectArguments,

    /// Let ClickHouse merge the month then, in the target and in the tables that its views fill,
    /// so that nothing stands twice; may take long
    #[arg(long, help_heading = HOW)]
    pub optimize: bool,

    /// Say what there is to mend, but write nothing [env: DRY_RUN]
    #[arg(long, conflicts_with = "optimize", help_heading = HOW)]
    pub dry_run: bool,

    /// Go on with what an interrupted repair has found, instead of finding it anew
    #[arg(long, help_heading = HOW)]
    pub resume: bool,

    /// Directory for the checkpoint and for what is found [env: STATE_DIR] [default: ./state]
    #[arg(long, value_name = "DIR", help_heading = HOW)]
    pub state_dir: Option<PathBuf>,

    /// Memory the process may take [env: MEMORY_LIMIT] [default: 512MiB]
    #[arg(long, value_name = "SIZE", help_heading = HOW)]
    pub memory_limit: Option<String>,

    /// Segments that are worked on at once
    /// [env: CONCURRENCY] [default: number of processors, 2 to 4]
    #[arg(long, value_name = "N", help_heading = HOW)]
    pub concurrency: Option<String>,

    /// Rows that the server gathers for a part of the target [env: BATCH_SIZE] [default: 1000000]
    #[arg(long, value_name = "N", help_heading = HOW)]
    pub batch_size: Option<String>,

    /// Bytes that are enough for a part, uncompressed [env: PART_BYTES] [default: 512MiB]
    #[arg(long, value_name = "SIZE", help_heading = HOW)]
    pub part_bytes: Option<String>,

    /// How fast it may go.
    #[command(flatten)]
    pub throttle: ThrottleArguments,
}

/// A plan.
#[derive(Debug, Args)]
pub struct PlanArguments {
    /// The run: whatever its command line is, but for what tells of it, `plan` can be put before its
    /// options.
    #[command(flatten)]
    pub run: RunArguments,

    /// Print the plan as JSON, with exact numbers
    #[arg(long)]
    pub json: bool,
}

/// A look at the state directory.
#[derive(Debug, Args)]
pub struct StatusArguments {
    /// Directory of the checkpoints; several, where the shards of a month have one each
    /// [env: STATE_DIR] [default: ./state]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Vec<PathBuf>,

    /// Print JSON, with exact numbers
    #[arg(long)]
    pub json: bool,
}

/// A page about what is in the state directory.
#[derive(Debug, Args)]
pub struct ReportArguments {
    /// Directory of the checkpoints; several, where the shards of a month have one each
    /// [env: STATE_DIR] [default: ./state]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Vec<PathBuf>,

    /// Write the page to this file, as HTML
    #[arg(long, value_name = "FILE", required = true)]
    pub html: PathBuf,
}

/// Where completions and man pages go.
#[derive(Debug, Args)]
pub struct GenerateArguments {
    /// Directory that is laid out as /usr/local/share or ~/.local/share
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// What it is about: the same for a run, its plan and its proof.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Which events are written")]
pub struct SubjectArguments {
    /// Month to backfill, as the id of its partition; or several, as a list (202404,202406), as a
    /// range with both ends (202404..202406), or mixed. The newest is done first. May be given
    /// more than once [env: PARTITION]
    #[arg(long, value_name = "YYYYMM")]
    pub partition: Vec<String>,

    /// All months that there are, the newest first [env: ALL_PARTITIONS]
    #[arg(long, conflicts_with = "partition")]
    pub all_partitions: bool,

    /// Table to write to
    /// [env: TARGET_TABLE] [default: events_full where it exists, else events]
    #[arg(long, value_name = "NAME")]
    pub target_table: Option<String>,

    /// Write a root span for each trace too: span_id t-<trace_id>, with the trace's input, output
    /// and attributes [env: ROOT_SPANS] [default: on; off into an older table, without the column
    /// experiment_id]
    #[arg(long)]
    pub root_spans: bool,

    /// Write no root spans [env: NO_ROOT_SPANS]
    #[arg(long, conflicts_with_all = ["root_spans", "only"])]
    pub no_root_spans: bool,

    /// Write these events only
    #[arg(long, value_name = "WHAT")]
    pub only: Option<Only>,

    /// Let the spans of dataset runs say to which experiment and item they belong
    /// [env: EXPERIMENTS] [default: on; off without dataset run items, into an older table, without
    /// the column experiment_id, and with --exclude-dataset-items]
    #[arg(long)]
    pub experiments: bool,

    /// Do not look for the spans of dataset runs: all are written, and none says to which
    /// experiment it belongs [env: NO_EXPERIMENTS]
    #[arg(long, conflicts_with = "experiments")]
    pub no_experiments: bool,

    /// Leave out observations whose trace belongs to a dataset run, and its root span. With
    /// --experiments they are written, once, with what the run says
    /// [env: EXCLUDE_DATASET_ITEMS]
    #[arg(long)]
    pub exclude_dataset_items: bool,

    /// Do not add the trace's metadata to the observation's [env: NO_TRACE_METADATA]
    #[arg(long)]
    pub no_trace_metadata: bool,

    /// Days before and after the month whose traces are loaded too: an observation near its
    /// edge may have a trace on the other side [env: TRACE_MARGIN_DAYS] [default: 1]
    #[arg(long, value_name = "N")]
    pub trace_margin_days: Option<String>,

    /// Do not ask ClickHouse for traces that are on none of these days: their observations
    /// become events without the trace's attributes [env: NO_REMOTE_LOOKUP]
    #[arg(long)]
    pub no_remote_lookup: bool,

    /// Leave rows that changed after this moment to Langfuse, as 2026-11-26 21:00:00 (UTC) or
    /// 2026-11-26T22:00:00+01:00 [env: UNTIL] [default: one hour before the run, where the target
    /// has rows that Langfuse itself wrote; else none are left]
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,

    /// Compression on the way to and from ClickHouse: auto is none to this
    /// machine and LZ4 to any other [env: COMPRESSION] [default: auto]
    #[arg(long, value_name = "auto|lz4|none", help_heading = "Connection")]
    pub compression: Option<String>,

    /// Do the same on every shard of a ClickHouse cluster, each with the tables of its own: one process a
    /// shard, all at once, with its state in STATE_DIR/shard-N [env: ALL_SHARDS]
    #[arg(long, help_heading = "Connection")]
    pub all_shards: bool,

    /// The cluster whose shards these are, as system.clusters names it
    /// [env: CLICKHOUSE_CLUSTER_NAME] [default: default]
    #[arg(long, value_name = "NAME", help_heading = "Connection")]
    pub cluster: Option<String>,

    /// Where a table is Distributed, use the table behind it, of this server's shard alone. What
    /// --all-shards tells each of its processes [env: LOCAL_TABLES]
    #[arg(long, help_heading = "Connection")]
    pub local_tables: bool,

    /// Take any TLS certificate for the server's. Who is between you and the
    /// server can then read and change everything
    #[arg(long, help_heading = "Connection")]
    pub dangerously_accept_invalid_certificates: bool,

    /// Write the summary to this file, as JSON
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub report: Option<PathBuf>,

    /// End where there would be a warning: rows of a table are hidden from the user, a TTL takes rows
    /// of the month, a right is missing, or the only target is a table that v4 does not read
    #[arg(long)]
    pub strict: bool,

    /// Print nothing but errors and warnings
    #[arg(long, help_heading = "Output")]
    pub quiet: bool,

    /// How lines on standard error look: text for people, or json, an object each with time, level and
    /// message [env: LOG_FORMAT] [default: text]
    #[arg(long, value_name = "text|json", help_heading = "Output")]
    pub log_format: Option<String>,
}

/// A part of the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Only {
    /// Root spans of traces.
    RootSpans,
}

/// A backfill.
#[derive(Debug, Default, Args)]
pub struct RunArguments {
    /// What it is about.
    #[command(flatten)]
    pub subject: SubjectArguments,

    /// Read, look up and enrich everything, but insert nothing [env: DRY_RUN]
    #[arg(long, help_heading = HOW)]
    pub dry_run: bool,

    /// Continue the unfinished run in the state directory; of several partitions, those that are
    /// not finished
    #[arg(long, conflicts_with = "restart", help_heading = HOW)]
    pub resume: bool,

    /// Discard the run in the state directory and start over; of several partitions,
    /// all of them
    #[arg(long, help_heading = HOW)]
    pub restart: bool,

    /// Continue the unfinished run in the state directory, or start where there is none: one command
    /// line for the first start and every restart. Waits for a server that is not there yet, and for
    /// a process that has not ended yet [env: RESUME_OR_START]
    #[arg(long, conflicts_with_all = ["resume", "restart"], help_heading = HOW)]
    pub resume_or_start: bool,

    /// Do one shard's days of each month, as one of several processes that share it out: 3/8 is the
    /// third of eight. Each loads only the traces of its own days. At most 28 [env: SHARD, or
    /// JOB_COMPLETION_INDEX and JOB_COMPLETIONS in a Kubernetes Indexed Job] [default: all days]
    #[arg(long, value_name = "K/N", help_heading = HOW)]
    pub shard: Option<String>,

    /// After a partition has failed, go on with the next one, instead of stopping there
    #[arg(long, help_heading = HOW)]
    pub keep_going: bool,

    /// Keep the trace store after success, instead of deleting it
    #[arg(long, help_heading = HOW)]
    pub keep_traces: bool,

    /// Directory for the checkpoint and the trace store; needs room for about 100 bytes per trace,
    /// and more for long metadata
    /// [env: STATE_DIR] [default: ./state]
    #[arg(long, value_name = "DIR", help_heading = HOW)]
    pub state_dir: Option<PathBuf>,

    /// Memory the process may take [env: MEMORY_LIMIT] [default: 512MiB]
    #[arg(long, value_name = "SIZE", help_heading = HOW)]
    pub memory_limit: Option<String>,

    /// Segments of the partition that are worked on at once
    /// [env: CONCURRENCY] [default: number of processors, 2 to 4]
    #[arg(long, value_name = "N", help_heading = HOW)]
    pub concurrency: Option<String>,

    /// Rows that the server gathers for a part of the target, unless their bytes are enough
    /// [env: BATCH_SIZE] [default: 1000000]
    #[arg(long, value_name = "N", help_heading = HOW)]
    pub batch_size: Option<String>,

    /// Bytes that are enough for a part, uncompressed: the server holds so many for each segment. Less
    /// where it has too little memory [env: PART_BYTES] [default: 512MiB]
    #[arg(long, value_name = "SIZE", help_heading = HOW)]
    pub part_bytes: Option<String>,

    /// Rows per segment, the unit of work; raised where the month lies in so
    /// many parts that shorter segments would read too much twice [env: SEGMENT_ROWS] [default: 250000]
    #[arg(long, value_name = "N", help_heading = HOW)]
    pub segment_rows: Option<String>,

    /// Write to a target that is not a ReplacingMergeTree, where running again
    /// adds every row a second time
    #[arg(long, help_heading = HOW)]
    pub allow_duplicates: bool,

    /// How fast it may go.
    #[command(flatten)]
    pub throttle: ThrottleArguments,

    /// What tells of it: nothing of a plan, which runs nothing.
    #[arg(skip)]
    pub telling: TellingArguments,
}

/// What tells of a run.
#[derive(Debug, Default, Args)]
pub struct TellingArguments {
    /// Write a page about the run to this file, as HTML: charts, counts and what is left to do
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub html: Option<PathBuf>,

    /// Serve metrics for Prometheus at http://ADDRESS/metrics, and /healthz and /readyz, while it runs:
    /// 127.0.0.1:9464, for example [env: METRICS_LISTEN] [default: not]
    #[arg(long, value_name = "ADDRESS", help_heading = "Output")]
    pub metrics_listen: Option<String>,
}

/// How fast a run may go, and what of the server makes it slower.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Consideration for others on the server")]
pub struct ThrottleArguments {
    /// Take all that the server gives: do not slow down when it is busy, and do not give way to other
    /// queries [env: NO_THROTTLE]
    #[arg(long)]
    pub no_throttle: bool,

    /// Rows of events that may be written in a second [env: MAX_ROWS_PER_SECOND] [default: no limit]
    #[arg(long, value_name = "N")]
    pub max_rows_per_second: Option<String>,

    /// Their bytes, uncompressed [env: MAX_BYTES_PER_SECOND] [default: no limit]
    #[arg(long, value_name = "SIZE")]
    pub max_bytes_per_second: Option<String>,

    /// Begin segments only in this time of the day, in the machine's zone or in the one that is named:
    /// 22:00-06:00, or '22:00-06:00 Europe/Berlin' [env: WINDOW] [default: always]
    #[arg(long, value_name = "TIMES")]
    pub window: Option<String>,

    /// Slow down above so many active parts in one partition [env: MAX_PARTS] [default: half of what
    /// the server delays or refuses inserts from]
    #[arg(long, value_name = "N")]
    pub max_parts: Option<String>,

    /// … so many merges at once [env: MAX_MERGES] [default: one fewer than the server has threads for]
    #[arg(long, value_name = "N")]
    pub max_merges: Option<String>,

    /// … so many seconds that a replica is behind [env: MAX_REPLICA_DELAY] [default: 60]
    #[arg(long, value_name = "SECONDS")]
    pub max_replica_delay: Option<String>,

    /// … so many entries in the queue of a replica [env: MAX_REPLICA_QUEUE] [default: 200]
    #[arg(long, value_name = "N")]
    pub max_replica_queue: Option<String>,

    /// … so many percent of the server's memory [env: MAX_SERVER_MEMORY] [default: 85]
    #[arg(long, value_name = "PERCENT")]
    pub max_server_memory: Option<String>,

    /// … so many queries of others at once [env: MAX_QUERIES] [default: 4 for each core, at least 8]
    #[arg(long, value_name = "N")]
    pub max_queries: Option<String>,

    /// … so many queries of others that have run for ten seconds [env: MAX_SLOW_QUERIES] [default: 4]
    #[arg(long, value_name = "N")]
    pub max_slow_queries: Option<String>,

    /// … so many times the time that inserts took at first [env: MAX_INSERT_SLOWDOWN] [default: 5]
    #[arg(long, value_name = "N")]
    pub max_insert_slowdown: Option<String>,
}

/// Heading of the options that say how a run goes.
const HOW: &str = "How a run goes";

const EXAMPLES: &str = "\
Examples:
  See what there would be to do, without writing:
    events-backfill --partition 202406 --dry-run
  Do it, keeping state on a large disk:
    events-backfill --partition 202406 --state-dir /data/backfill
  Continue after an interruption:
    events-backfill --partition 202406 --state-dir /data/backfill --resume
  All months, the newest first, and go on if one fails; then the ones that are not done:
    events-backfill --all-partitions --state-dir /data/backfill --keep-going
    events-backfill --all-partitions --state-dir /data/backfill --resume
  At night only, and never more than 20,000 rows a second:
    events-backfill --all-partitions --window 22:00-06:00 --max-rows-per-second 20000
  With few resources, and the summary for a program:
    events-backfill --partition 202406 --memory-limit 256MiB --quiet --report summary.json";

const SETTINGS: &str = "\
Further settings, from the environment or .env only:
  CLICKHOUSE_URL            address of ClickHouse's HTTP interface, or addresses of replicas with commas
                            between them [default: http://localhost:8123]
  CLICKHOUSE_USER           [default: default]
  CLICKHOUSE_PASSWORD       or CLICKHOUSE_PASSWORD_FILE, a file that holds it
  CLICKHOUSE_DB             database of the Langfuse tables [default: default]
  SSL_CERT_FILE             certificates of authorities [default: those of the machine]
  STREAM_BLOCK_SIZE         most rows in one block that is read [default: 8192]
  RELOAD_SECONDS            how often traces that changed are loaded again [default: 900]
  MAX_RETRIES               tries after a passing error, per segment [default: 8]

Exit codes: 0 done, 1 failed, 2 usage or configuration, 129, 130 or 143 interrupted.";
