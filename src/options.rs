//! What the user asked for: command line, environment and `.env` put together
//! and validated. A job takes [`Options`] only, so nothing unchecked is run.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use url::{Host, Url};

use crate::cli::{Only, RunArguments};
use crate::clickhouse::{Compression, ConnectionOptions, Password};
use crate::error::Error;
use crate::mapping::Source;
use crate::memory::{Budget, ByteSize};
use crate::selection::Selection;
use crate::trace_store::Day;

/// The range of ClickHouse's Date type, in which days are counted.
const YEARS: std::ops::RangeInclusive<i32> = 1970..=2148;

/// A month, as ClickHouse names its partition: `202406`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Partition {
    year: i32,
    month: time::Month,
}

impl Partition {
    /// The days of the month, as days since 1970-01-01.
    pub fn days(self) -> impl Iterator<Item = Day> {
        let epoch = time::Date::from_ordinal_date(1970, 1).map_or(0, time::Date::to_julian_day);
        let first = time::Date::from_calendar_date(self.year, self.month, 1)
            .map_or(epoch, time::Date::to_julian_day);
        let length = i32::from(self.month.length(self.year));
        (first..first + length).filter_map(move |day| u16::try_from(day - epoch).ok())
    }
}

impl Partition {
    /// The days of the month, and so many before and after it.
    pub fn days_with_margin(self, margin: u16) -> std::ops::RangeInclusive<Day> {
        let (mut days, fallback) = (self.days(), 0);
        let first = days.next().unwrap_or(fallback);
        let last = days.last().unwrap_or(first);
        first.saturating_sub(margin)..=last.saturating_add(margin)
    }

    /// The month after this one, if there is one that can be written.
    pub fn next(self) -> Option<Self> {
        let month = self.month.next();
        let year = self.year + i32::from(month == time::Month::January);
        YEARS.contains(&year).then_some(Self { year, month })
    }

    /// The months from this one to `last`, both included.
    pub fn months_to(self, last: Self) -> impl Iterator<Item = Self> {
        std::iter::successors(Some(self), |month| month.next()).take_while(move |&m| m <= last)
    }

    /// The partition in which a day lies, as ClickHouse names it.
    pub fn id_of(day: Day) -> String {
        let epoch = time::Date::from_ordinal_date(1970, 1).map_or(0, time::Date::to_julian_day);
        match time::Date::from_julian_day(epoch + i32::from(day)) {
            Ok(date) => format!("{:04}{:02}", date.year(), u8::from(date.month())),
            Err(_) => String::new(),
        }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}{:02}", self.year, u8::from(self.month))
    }
}

impl FromStr for Partition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("partition '{text}' is not a month: write it as YYYYMM, for example 202406");
        if text.len() != 6 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let year: i32 = text[..4].parse().map_err(|_| wrong())?;
        let month: u8 = text[4..].parse().map_err(|_| wrong())?;
        let month = time::Month::try_from(month).map_err(|_| {
            format!("partition '{text}' is not a month: there is no month {month:02}")
        })?;
        if !YEARS.contains(&year) {
            return Err(format!(
                "partition '{text}' is out of range: years go from {} to {}",
                YEARS.start(),
                YEARS.end()
            ));
        }
        Ok(Self { year, month })
    }
}

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
    /// [`Error::Configuration`], with a sentence that names the setting.
    pub fn new(arguments: RunArguments, environment: &Environment) -> Result<Self, Error> {
        let selection = selection(&arguments, environment)?;
        let keep_going = arguments.keep_going;
        let any = Partition {
            year: *YEARS.start(),
            month: time::Month::January,
        };
        Ok(Self {
            job: Options::new(arguments, environment, selection.single().unwrap_or(any))?,
            selection,
            keep_going,
        })
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

/// Which partitions: the command line counts before the environment.
fn selection(arguments: &RunArguments, environment: &Environment) -> Result<Selection, Error> {
    let subject = &arguments.subject;
    if !subject.partition.is_empty() {
        let texts = subject.partition.iter().map(String::as_str);
        return Selection::parse(texts).map_err(Error::Configuration);
    }
    if subject.all_partitions {
        return Ok(Selection::All);
    }
    match (
        environment.get("PARTITION"),
        environment.flag("ALL_PARTITIONS")?,
    ) {
        (Some(text), false) => Selection::parse([text]).map_err(Error::Configuration),
        (None, true) => Ok(Selection::All),
        (Some(_), true) => Err(Error::Configuration(
            "PARTITION and ALL_PARTITIONS are both set: take one of them away, or say --partition \
             or --all-partitions"
                .to_owned(),
        )),
        (None, false) => Err(Error::Configuration(
            "which month? Name its partition with --partition YYYYMM, for example \
             --partition 202406, or say --all-partitions"
                .to_owned(),
        )),
    }
}

/// A validated job for one partition.
#[derive(Debug, Clone)]
pub struct Options {
    /// The month.
    pub partition: Partition,
    /// Where ClickHouse is.
    pub connection: ConnectionOptions,
    /// Database of the tables.
    pub database: String,
    /// Table to write to, if the user named one.
    pub target_table: Option<String>,
    /// Insert nothing.
    pub dry_run: bool,
    /// Continue an unfinished run.
    pub resume: bool,
    /// Discard an unfinished run.
    pub restart: bool,
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
    /// Most rows in one insert.
    pub batch_rows: usize,
    /// Most rows in one block that is read.
    pub block_rows: usize,
    /// Rows per segment.
    pub segment_rows: u64,
    /// Tries after a passing error.
    pub max_retries: u32,
    /// Write an event for each observation.
    pub observations: bool,
    /// Write a root span for each trace.
    pub root_spans: bool,
    /// Say to which experiment spans belong.
    pub experiments: bool,
    /// Leave out the spans of dataset runs. Never together with `experiments`.
    pub exclude_dataset_items: bool,
    /// Days before and after the month whose traces are loaded too.
    pub trace_margin_days: u16,
    /// Ask ClickHouse for traces that are on none of these days.
    pub remote_lookup: bool,
    /// Add the traces' metadata.
    pub trace_metadata: bool,
    /// Write to a table that keeps duplicates.
    pub allow_duplicates: bool,
    /// Where to write the summary as JSON.
    pub report: Option<PathBuf>,
    /// Print nothing but errors.
    pub quiet: bool,
}

/// The variables that mean something here.
const VARIABLES: &[&str] = &[
    "ALL_PARTITIONS",
    "BATCH_SIZE",
    "CLICKHOUSE_DB",
    "CLICKHOUSE_PASSWORD",
    "CLICKHOUSE_PASSWORD_FILE",
    "CLICKHOUSE_URL",
    "CLICKHOUSE_USER",
    "COMPRESSION",
    "CONCURRENCY",
    "DRY_RUN",
    "EXCLUDE_DATASET_ITEMS",
    "EXPERIMENTS",
    "MAX_RETRIES",
    "MEMORY_LIMIT",
    "NO_REMOTE_LOOKUP",
    "NO_TRACE_METADATA",
    "PARTITION",
    "ROOT_SPANS",
    "SEGMENT_ROWS",
    "STATE_DIR",
    "STREAM_BLOCK_SIZE",
    "TARGET_TABLE",
    "TRACE_MARGIN_DAYS",
];

/// Settings outside of the command line: the environment, then `.env`.
#[derive(Default)]
pub struct Environment {
    variables: HashMap<String, String>,
}

impl Environment {
    /// The process's environment, and the file `.env` in the current directory.
    ///
    /// # Errors
    /// [`Error::Configuration`] where `.env` is there and cannot be read.
    pub fn read() -> Result<Self, Error> {
        let mut variables = HashMap::new();
        let file = Path::new(".env");
        if file.exists() {
            let wrong = |error: dotenvy::Error| Error::Configuration(describe_dotenv(&error));
            for pair in dotenvy::from_path_iter(file).map_err(wrong)? {
                let (name, value) = pair.map_err(wrong)?;
                if VARIABLES.contains(&name.as_str()) {
                    variables.insert(name, value);
                }
            }
        }
        for name in VARIABLES {
            match std::env::var(name) {
                // An empty variable is as if it were not there.
                Ok(value) if value.trim().is_empty() => {}
                Ok(value) => {
                    variables.insert((*name).to_owned(), value);
                }
                Err(std::env::VarError::NotPresent) => {}
                Err(std::env::VarError::NotUnicode(_)) => {
                    return Err(Error::Configuration(format!(
                        "the environment variable {name} is not UTF-8 text"
                    )));
                }
            }
        }
        Ok(Self { variables })
    }

    /// An environment of these variables only.
    pub fn of(pairs: &[(&str, &str)]) -> Self {
        let pairs = pairs
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()));
        Self {
            variables: pairs.collect(),
        }
    }

    /// The directory of all state, given the flag.
    pub fn state_dir(&self, argument: Option<PathBuf>) -> PathBuf {
        argument
            .or_else(|| self.get("STATE_DIR").map(PathBuf::from))
            .unwrap_or_else(|| PathBuf::from("./state"))
    }

    /// A variable that is set and not empty.
    fn get(&self, name: &str) -> Option<&str> {
        self.variables
            .get(name)
            .map(|value| value.trim())
            .filter(|value| !value.is_empty())
    }

    fn flag(&self, name: &str) -> Result<bool, Error> {
        match self.get(name).map(str::to_ascii_lowercase).as_deref() {
            None | Some("0" | "false" | "no" | "off" | "n" | "f") => Ok(false),
            Some("1" | "true" | "yes" | "on" | "y" | "t") => Ok(true),
            Some(other) => Err(Error::Configuration(format!(
                "{name} is '{other}': write true or false"
            ))),
        }
    }
}

/// dotenvy's own message repeats the line, which may hold a password.
fn describe_dotenv(error: &dotenvy::Error) -> String {
    match error {
        dotenvy::Error::LineParse(_, position) => format!(
            "the file .env cannot be understood (near character {position} of a line): each line is \
             NAME=value, and values with spaces, quotes or # need double quotes around them"
        ),
        dotenvy::Error::Io(error) => format!("the file .env cannot be read: {error}"),
        _ => "the file .env cannot be read".to_owned(),
    }
}

impl Options {
    /// Puts everything together for one partition.
    ///
    /// # Errors
    /// [`Error::Configuration`], with a sentence that names the setting.
    fn new(
        arguments: RunArguments,
        environment: &Environment,
        partition: Partition,
    ) -> Result<Self, Error> {
        let subject = arguments.subject;
        let settings = Settings { environment };
        let dry_run = arguments.dry_run || environment.flag("DRY_RUN")?;
        if dry_run && arguments.resume {
            return Err(Error::Configuration(
                "--resume goes with no dry run: a dry run keeps no checkpoint".to_owned(),
            ));
        }
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        let concurrency = settings.number(
            arguments.concurrency,
            "--concurrency",
            "CONCURRENCY",
            processors.clamp(2, 4) as u64,
            1..=64,
        )? as usize;
        let memory_limit = settings
            .text(arguments.memory_limit, "MEMORY_LIMIT")
            .unwrap_or_else(|| "512MiB".to_owned())
            .parse::<ByteSize>()
            .map_err(|error| Error::Configuration(format!("--memory-limit: {error}")))?;
        let budget = Budget::new(memory_limit, concurrency).map_err(Error::Configuration)?;
        let compression = settings.text(subject.compression, "COMPRESSION");
        let connection = settings.connection(
            compression.as_deref(),
            subject.dangerously_accept_invalid_certificates,
        )?;
        let batch_rows = settings.number(
            arguments.batch_size,
            "--batch-size",
            "BATCH_SIZE",
            250_000,
            1..=10_000_000,
        )? as usize;
        let block_rows =
            settings.number(None, "", "STREAM_BLOCK_SIZE", 8_192, 1..=65_536)? as usize;
        let experiments = subject.experiments || environment.flag("EXPERIMENTS")?;
        Ok(Self {
            partition,
            connection,
            database: settings
                .text(None, "CLICKHOUSE_DB")
                .unwrap_or_else(|| "default".to_owned()),
            target_table: settings.text(subject.target_table, "TARGET_TABLE"),
            dry_run,
            resume: arguments.resume,
            restart: arguments.restart,
            keep_traces: arguments.keep_traces,
            state_dir: environment.state_dir(arguments.state_dir),
            memory_limit,
            budget,
            concurrency,
            batch_rows,
            block_rows,
            segment_rows: settings.number(
                arguments.segment_rows,
                "--segment-rows",
                "SEGMENT_ROWS",
                250_000,
                1..=1_000_000_000,
            )?,
            max_retries: settings.number(None, "", "MAX_RETRIES", 8, 0..=1_000)? as u32,
            observations: subject.only != Some(Only::RootSpans),
            root_spans: subject.root_spans
                || subject.only == Some(Only::RootSpans)
                || environment.flag("ROOT_SPANS")?,
            experiments,
            // With experiments, these spans are written too, and only once.
            exclude_dataset_items: !experiments
                && (subject.exclude_dataset_items || environment.flag("EXCLUDE_DATASET_ITEMS")?),
            trace_margin_days: settings.number(
                subject.trace_margin_days,
                "--trace-margin-days",
                "TRACE_MARGIN_DAYS",
                1,
                0..=366,
            )? as u16,
            remote_lookup: !(subject.no_remote_lookup || environment.flag("NO_REMOTE_LOOKUP")?),
            trace_metadata: !(subject.no_trace_metadata
                || environment.flag("NO_TRACE_METADATA")?),
            allow_duplicates: arguments.allow_duplicates,
            report: subject.report,
            quiet: subject.quiet,
        })
    }
}

impl Options {
    /// The tables whose rows become events, in the order in which that is done.
    pub fn sources(&self) -> Vec<Source> {
        let wanted = [
            (Source::Observations, self.observations),
            (Source::Traces, self.root_spans),
        ];
        let wanted = wanted.into_iter().filter(|(_, is_wanted)| *is_wanted);
        wanted.map(|(source, _)| source).collect()
    }
}

struct Settings<'a> {
    environment: &'a Environment,
}

impl Settings<'_> {
    fn text(&self, argument: Option<String>, variable: &str) -> Option<String> {
        argument.or_else(|| self.environment.get(variable).map(str::to_owned))
    }

    fn number(
        &self,
        argument: Option<String>,
        flag: &str,
        variable: &str,
        default: u64,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, Error> {
        let (name, text) = match (argument, self.environment.get(variable)) {
            (Some(text), _) => (flag, text),
            (None, Some(text)) => (variable, text.to_owned()),
            (None, None) => return Ok(default),
        };
        text.parse()
            .ok()
            .filter(|number| range.contains(number))
            .ok_or_else(|| {
                Error::Configuration(format!(
                    "{name} is '{text}': it must be a whole number from {} to {}",
                    range.start(),
                    range.end()
                ))
            })
    }

    fn connection(
        &self,
        compression: Option<&str>,
        accept_invalid_certificates: bool,
    ) -> Result<ConnectionOptions, Error> {
        let text = self
            .text(None, "CLICKHOUSE_URL")
            .unwrap_or_else(|| "http://localhost:8123".to_owned());
        let url = parse_url(&text).map_err(Error::Configuration)?;
        let compression = match compression {
            None | Some("auto") if is_loopback(&url) => Compression::None,
            None | Some("auto" | "lz4") => Compression::Lz4,
            Some("none") => Compression::None,
            Some(other) => {
                return Err(Error::Configuration(format!(
                    "--compression is '{other}': it must be auto, lz4 or none"
                )));
            }
        };
        let user = self
            .text(None, "CLICKHOUSE_USER")
            .unwrap_or_else(|| "default".to_owned());
        if user.contains(':') {
            return Err(Error::Configuration(
                "CLICKHOUSE_USER contains a colon, which cannot be sent over HTTP".to_owned(),
            ));
        }
        Ok(ConnectionOptions {
            url,
            user,
            password: self.password()?,
            compression,
            accept_invalid_certificates,
        })
    }

    fn password(&self) -> Result<Password, Error> {
        // Not trimmed: a password may begin or end with a space.
        let variable = self.environment.variables.get("CLICKHOUSE_PASSWORD");
        match (variable, self.environment.get("CLICKHOUSE_PASSWORD_FILE")) {
            (Some(password), _) if !password.is_empty() => Ok(Password::new(password)),
            (_, Some(file)) => {
                let content = std::fs::read_to_string(file).map_err(|error| {
                    Error::Configuration(format!(
                        "the password file {file} (CLICKHOUSE_PASSWORD_FILE) cannot be read: {error}"
                    ))
                })?;
                Ok(Password::new(content.trim_end_matches(['\r', '\n'])))
            }
            _ => Ok(Password::default()),
        }
    }
}

fn parse_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| {
        format!(
            "CLICKHOUSE_URL cannot be understood ({error}): write for example http://localhost:8123"
        )
    })?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(format!(
            "CLICKHOUSE_URL begins with '{}:': it must be the address of ClickHouse's HTTP \
             interface, for example http://localhost:8123",
            url.scheme()
        ));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err(
            "CLICKHOUSE_URL must not hold credentials or parameters: use CLICKHOUSE_USER, \
                    CLICKHOUSE_PASSWORD and CLICKHOUSE_DB"
                .to_owned(),
        );
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Arguments;
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
    fn empty_variables_are_as_if_not_there() {
        let variables = [
            ("PARTITION", "202401"),
            ("BATCH_SIZE", ""),
            ("DRY_RUN", " "),
        ];
        let merged = options(&[], &variables).unwrap();
        assert_eq!(merged.batch_rows, 250_000);
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
    fn a_month_has_its_days() {
        let days = |text: &str| {
            text.parse::<Partition>()
                .unwrap()
                .days()
                .collect::<Vec<_>>()
        };
        assert_eq!(days("197001"), (0..31).collect::<Vec<_>>());
        assert_eq!(days("202402").len(), 29);
        assert_eq!(days("202406")[0], 19_875);
        let margin = "202406".parse::<Partition>().unwrap().days_with_margin(2);
        assert_eq!(margin, 19_873..=19_906);
        let ids = [19_874, 19_875, 19_904, 19_905].map(Partition::id_of);
        assert_eq!(ids, ["202405", "202406", "202406", "202407"]);
        assert_eq!(
            "197001".parse::<Partition>().unwrap().days_with_margin(3),
            0..=33
        );
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
