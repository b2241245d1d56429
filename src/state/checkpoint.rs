//! What of a run is done, on disk, so that another process can continue it.
//!
//! The file is: 8 bytes that say what it is, the format's version (`u32`), the
//! length of the payload (`u64`), a CRC-32 of all of these and the payload
//! (`u32`), all little-endian, then the payload in bincode. It is replaced as a
//! whole: written to a temporary file, synced, renamed, and the directory synced.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::Path;

use bincode::config::{Config, standard};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::counts::{DeferredCounts, ExperimentCounts, SegmentCounts, TargetState};
use super::files::advice_on_files;
use crate::cli::options::{Options, Subject};
use crate::clickhouse::TableInfo;
use crate::error::Error;
use crate::inspect::Inspected;
use crate::inspect::segments::Segment;
use crate::mapping::Source;
use crate::partition::{Day, seconds_since_1970};

const MAGIC: &[u8; 8] = b"EVBACKFL";
/// Increased whenever [`Checkpoint`] changes, or what the trace store holds.
const FORMAT_VERSION: u32 = 8;
/// Most bytes that a length in the payload may claim; otherwise a damaged one
/// would ask for more memory than there is.
const MAX_PAYLOAD: usize = 256 * 1024 * 1024;
/// Magic, version, length, checksum.
const HEADER: usize = 8 + 4 + 8 + 4;

/// Everything a run needs to know of what was done before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// What the run was made for.
    pub identity: RunIdentity,
    /// Name of the run; its trace store bears it too.
    pub run_id: String,
    /// Seconds since 1970 when the run began.
    pub started_at: u64,
    /// Seconds since 1970 when this was written.
    pub saved_at: u64,
    /// Days whose traces are in the store: rows read, and traces that are not deleted.
    pub days: BTreeMap<Day, (u64, u64)>,
    /// Once all days are loaded and settled: loaded versions that do not count.
    pub superseded: Option<u64>,
    /// The plan, once it is made.
    pub segments: Option<Vec<Segment>>,
    /// What the target was like before anything was written, once that is known.
    pub target: Option<TargetState>,
    /// Segments that were begun and are not done: rows of them may be in the target.
    pub begun: BTreeSet<u32>,
    /// Segments of which what they had left for later was begun, and is not done.
    pub deferred_begun: BTreeSet<u32>,
    /// Segments that were begun more than once: rows of them may be in the target, and not in the
    /// table that its view fills.
    pub repeated: BTreeSet<u32>,
    /// Traces that were loaded again since they had changed.
    pub traces_reloaded: u64,
    /// Those of them that changed after events had been written.
    pub traces_changed: u64,
    /// Segments that are done, but for what they left for later.
    pub done: BTreeMap<u32, SegmentCounts>,
    /// What segments left for later, and is not done yet.
    pub deferred: BTreeMap<u32, DeferredCounts>,
    /// What segments left for later, and is done.
    pub deferred_done: BTreeMap<u32, SegmentCounts>,
    /// What became of the traces that were asked for one by one.
    pub remote: RemoteTraces,
    /// What belongs to experiments, once that is known and wanted.
    pub experiments: Option<ExperimentCounts>,
    /// Whether everything is done.
    pub finished: bool,
}

/// Traces that are on none of the days that were loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteTraces {
    /// How many ClickHouse was asked for.
    pub asked: u64,
    /// How many of them it has, in whatever month.
    pub found: u64,
    /// Project and id of some that were not found.
    pub not_found: Vec<(ByteBuf, ByteBuf)>,
}

/// What a run was made for. A run must not be continued for anything else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunIdentity {
    /// What became of which rows.
    pub(crate) subject: Subject,
    /// Which month and tables, as pairs of a name and a value that people can read.
    facts: BTreeMap<String, String>,
}

impl RunIdentity {
    /// These facts: names with their values.
    pub fn of(facts: BTreeMap<String, String>) -> Self {
        Self {
            subject: Subject::default(),
            facts,
        }
    }

    /// What a run with these options on these tables is made for.
    pub(crate) fn new(options: &Options, inspected: &Inspected) -> Self {
        let partition = options.partition.to_string();
        let mut facts = BTreeMap::from([("the partition".to_owned(), partition)]);
        if let Some(shard) = options.shard {
            facts.insert(SHARD.to_owned(), shard.to_string());
        }
        let reads_items = options.subject.reads_dataset_items();
        let dataset_items = inspected.dataset_items.as_ref().filter(|_| reads_items);
        let tables = [
            ("the observations", Some(&inspected.observations)),
            ("the traces", Some(&inspected.traces)),
            ("the target", Some(&inspected.target)),
            ("the dataset run items", dataset_items),
        ];
        // Tables are told by what they are, wherever they are reached: a replica has the same ones, and a load
        // balancer may get another address.
        if tables
            .iter()
            .any(|(_, table)| table.is_some_and(|table| !table.has_identity()))
        {
            facts.insert(SERVER.to_owned(), options.connection.addresses());
        }
        for (role, table) in tables {
            let Some(table) = table else { continue };
            facts.insert(
                format!("{role} table"),
                format!("{}.{}", table.database, table.name),
            );
            facts.insert(format!("the identity of {role} table"), table.uuid.clone());
            facts.extend(columns_of(role, table));
        }
        Self {
            subject: options.subject,
            facts,
        }
    }

    /// The most telling difference, as a sentence, if there is one.
    pub(crate) fn difference(&self, now: &Self) -> Option<String> {
        most_telling(&self.all_facts(), &now.all_facts())
    }

    /// The same of what decides which events there are to be: not the columns, which are compared as
    /// they are now, nor how that was asked for. What is left to Langfuse by default is compared later.
    pub(crate) fn difference_in_events(&self, now: &Self) -> Option<String> {
        let facts = [self, now].map(|identity| {
            let mut facts = identity.all_facts();
            // Who verifies or mends a month looks at all its shards.
            facts.retain(|name, _| !name.starts_with(COLUMN) && *name != SHARD);
            facts.insert("--experiments", identity.subject.experiments.to_string());
            if now.subject.until.is_none() {
                facts.remove("--until");
            }
            facts
        });
        most_telling(&facts[0], &facts[1])
    }

    fn all_facts(&self) -> BTreeMap<&str, String> {
        let facts = self.facts.iter();
        let facts = facts.map(|(name, value)| (name.as_str(), value.clone()));
        facts.chain(self.subject.facts()).collect()
    }
}

/// The fact that names the server, where tables have no identities.
const SERVER: &str = "the server";

/// The fact that says which days of the month are done.
const SHARD: &str = "the shard";

/// What the names of facts about columns begin with.
const COLUMN: &str = "column ";

/// The first difference, if there is one; of several the one that explains the others.
fn most_telling(before: &BTreeMap<&str, String>, now: &BTreeMap<&str, String>) -> Option<String> {
    let names = before.keys().chain(now.keys());
    // A checkpoint of an earlier version names the server beside tables that are told without it.
    let is_told_otherwise =
        |name: &&&str| **name == SERVER && before.contains_key(SERVER) != now.contains_key(SERVER);
    // Another server or database has other columns and identities too.
    let name = names
        .filter(|name| before.get(*name) != now.get(*name))
        .filter(|name| !is_told_otherwise(name))
        .min_by_key(|name| {
            let first = [
                SERVER,
                "the observations table",
                "the traces table",
                "the target table",
            ];
            let place = first.iter().position(|other| other == *name);
            (place.unwrap_or(first.len()), *name)
        })?;
    let value = |facts: &BTreeMap<&str, String>| {
        let value = facts.get(name).cloned();
        value.unwrap_or_else(|| "not there".to_owned())
    };
    Some(format!(
        "{name} was {} and is {}",
        value(before),
        value(now)
    ))
}

fn columns_of<'a>(
    role: &'a str,
    table: &'a TableInfo,
) -> impl Iterator<Item = (String, String)> + 'a {
    table.columns.iter().map(move |column| {
        (
            format!("{COLUMN}{} of {role} table", column.name),
            column.data_type.clone(),
        )
    })
}

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system does not let it.
    #[error("{0}")]
    File(#[from] std::io::Error),
    /// The bytes are not what was written.
    #[error("it is damaged ({0})")]
    Damaged(&'static str),
    /// Another version of this program wrote it.
    #[error("it has format {found}, and this version of the program reads format {FORMAT_VERSION}")]
    Version {
        /// The format it has.
        found: u32,
    },
}

impl Checkpoint {
    /// A run that has just begun.
    pub fn begin(identity: RunIdentity, run_id: String, now: u64) -> Self {
        Self {
            identity,
            run_id,
            started_at: now,
            saved_at: now,
            days: BTreeMap::new(),
            superseded: None,
            segments: None,
            target: None,
            begun: BTreeSet::new(),
            deferred_begun: BTreeSet::new(),
            repeated: BTreeSet::new(),
            traces_reloaded: 0,
            traces_changed: 0,
            done: BTreeMap::new(),
            deferred: BTreeMap::new(),
            deferred_done: BTreeMap::new(),
            remote: RemoteTraces::default(),
            experiments: None,
            finished: false,
        }
    }

    /// Whether something live has written to the target, as far as the run has looked.
    pub(crate) fn has_live_rows(&self) -> bool {
        let target = self.target.as_ref();
        target.is_some_and(|target| target.has_live_rows)
    }

    /// Traces that count.
    pub fn traces(&self) -> u64 {
        let loaded: u64 = self.days.values().map(|(_, traces)| traces).sum();
        loaded.saturating_sub(self.superseded.unwrap_or(0))
    }

    /// Whether the spans of dataset runs are looked for now.
    pub fn awaits_experiments(&self) -> bool {
        self.superseded.is_some() && self.identity.subject.experiments && self.experiments.is_none()
    }

    /// Counts of all that is done of a source.
    pub fn counts(&self, source: Source) -> SegmentCounts {
        let mut sum = SegmentCounts::default();
        for segment in self.segments_of(source) {
            let done = self.done.get(&segment.number).into_iter();
            for counts in done.chain(self.deferred_done.get(&segment.number)) {
                sum += *counts;
            }
        }
        sum
    }

    /// Segments of the plan that are ranges of a source.
    pub fn segments_of(&self, source: Source) -> impl Iterator<Item = &Segment> {
        let segments = self.segments.iter().flatten();
        segments.filter(move |segment| segment.source == source)
    }

    /// The segment of that number.
    pub fn segment(&self, number: u32) -> Option<&Segment> {
        let mut segments = self.segments.iter().flatten();
        segments.find(|segment| segment.number == number)
    }

    /// Segments of which rows may be in the target that no checkpoint speaks of.
    pub fn in_doubt(&self) -> impl Iterator<Item = &Segment> {
        let numbers = self.begun.union(&self.deferred_begun);
        numbers.filter_map(|&number| self.segment(number))
    }

    /// What segments of a source have deferred, and is not done yet.
    pub(crate) fn deferred_of(
        &self,
        source: Source,
    ) -> impl Iterator<Item = (u32, DeferredCounts)> {
        let segments = self.segments_of(source);
        segments.filter_map(|segment| {
            let counts = self.deferred.get(&segment.number)?;
            Some((segment.number, *counts))
        })
    }

    /// Segments of which an attempt failed that may have written something.
    pub(crate) fn repeated_segments(&self) -> impl Iterator<Item = &Segment> {
        let numbers = self.repeated.iter();
        numbers.filter_map(|&number| self.segment(number))
    }

    /// Segments of a source that are not done.
    pub fn remaining(&self, source: Source) -> Vec<Segment> {
        self.segments_of(source)
            .filter(|segment| !self.done.contains_key(&segment.number))
            .cloned()
            .collect()
    }

    /// Reads a checkpoint; `None` where there is none.
    ///
    /// # Errors
    /// [`CheckpointError`] where there is one that cannot be used.
    pub fn read(path: &Path) -> Result<Option<Self>, CheckpointError> {
        match std::fs::read(path) {
            Ok(bytes) => Self::decode(&bytes).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps it at `path`, as [`Checkpoint::write`] does.
    ///
    /// # Errors
    /// [`Error`] with what to do where the file system does not let it.
    pub(crate) fn keep(&self, path: &Path) -> Result<(), Error> {
        self.write(path).map_err(|error| {
            let what = format!("the checkpoint {} cannot be written", path.display());
            Error::caused(what, &error).with(advice_on_files(&error))
        })
    }

    /// Replaces the checkpoint at `path`, atomically and durably.
    ///
    /// # Errors
    /// Whatever the file system says; the checkpoint that was there is then still there.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(&self.encode()?)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        // Without it, the rename itself may be lost with the power.
        File::open(directory)?.sync_all()
    }

    /// The bytes of its file.
    ///
    /// # Errors
    /// None for a checkpoint in memory.
    pub fn encode(&self) -> std::io::Result<Vec<u8>> {
        let payload =
            bincode::serde::encode_to_vec(self, configuration()).map_err(std::io::Error::other)?;
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&checksum(&bytes, &payload).to_le_bytes());
        bytes.extend_from_slice(&payload);
        Ok(bytes)
    }

    /// Reads the bytes of a checkpoint file.
    ///
    /// # Errors
    /// [`CheckpointError`] where they are not exactly what was written.
    pub fn decode(bytes: &[u8]) -> Result<Self, CheckpointError> {
        use CheckpointError::{Damaged, Version};
        let (header, payload) = bytes
            .split_at_checked(HEADER)
            .ok_or(Damaged("it is too short"))?;
        let (described, stored_checksum) = header.split_at(HEADER - 4);
        if !described.starts_with(MAGIC) {
            return Err(Damaged("it does not begin as a checkpoint does"));
        }
        if stored_checksum != checksum(described, payload).to_le_bytes() {
            return Err(Damaged("its checksum is wrong"));
        }
        let found = u32::from_le_bytes([described[8], described[9], described[10], described[11]]);
        if found != FORMAT_VERSION {
            return Err(Version { found });
        }
        let (checkpoint, length) = bincode::serde::decode_from_slice(payload, configuration())
            .map_err(|_| Damaged("its content cannot be read"))?;
        if length != payload.len() || described[12..] != (length as u64).to_le_bytes() {
            return Err(Damaged("its length is wrong"));
        }
        Ok(checkpoint)
    }
}

fn configuration() -> impl Config {
    standard().with_limit::<MAX_PAYLOAD>()
}

fn checksum(described: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(described);
    hasher.update(payload);
    hasher.finalize()
}

/// A name no other run has.
pub(crate) fn new_run_id() -> String {
    format!("{:x}-{:x}", seconds_since_1970(), fastrand::u64(..))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::options::Choice;

    fn example() -> Checkpoint {
        let facts = BTreeMap::from([("the server".to_owned(), "http://a".to_owned())]);
        let mut checkpoint = Checkpoint::begin(RunIdentity::of(facts), "run".to_owned(), 1);
        checkpoint.days.insert(19_875, (12, 10));
        checkpoint.superseded = Some(1);
        checkpoint.segments = Some(vec![Segment {
            number: 0,
            source: Source::Observations,
            from: None,
            to: None,
            rows: 7,
        }]);
        checkpoint.done.insert(0, SegmentCounts::default());
        checkpoint
    }

    #[test]
    fn what_segments_of_traces_have_deferred_is_no_work_of_observations() {
        let mut checkpoint = example();
        let of_traces = Segment {
            number: 99,
            source: Source::Traces,
            ..checkpoint.segments.as_ref().unwrap()[0].clone()
        };
        checkpoint.segments.as_mut().unwrap().push(of_traces);
        checkpoint.deferred.clear();
        let deferred = DeferredCounts { rows: 5, bytes: 50 };
        checkpoint.deferred.insert(99, deferred);
        assert_eq!(checkpoint.deferred_of(Source::Observations).count(), 0);
        let of_traces: Vec<_> = checkpoint.deferred_of(Source::Traces).collect();
        assert_eq!(of_traces, [(99, deferred)]);
    }

    #[test]
    fn a_checkpoint_is_read_back_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("checkpoint");
        assert_eq!(Checkpoint::read(&path).unwrap(), None);
        example().write(&path).unwrap();
        assert_eq!(Checkpoint::read(&path).unwrap(), Some(example()));
    }

    #[test]
    fn any_change_of_any_byte_and_any_truncation_is_noticed() {
        let bytes = example().encode().unwrap();
        for length in 0..bytes.len() {
            assert!(Checkpoint::decode(&bytes[..length]).is_err(), "{length}");
        }
        for position in 0..bytes.len() {
            for flip in 1..=255 {
                let mut changed = bytes.clone();
                changed[position] ^= flip;
                assert!(Checkpoint::decode(&changed).is_err(), "{position} {flip}");
            }
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(Checkpoint::decode(&longer).is_err());
    }

    #[test]
    fn another_format_version_is_told_as_such() {
        let mut bytes = example().encode().unwrap();
        bytes[8] = 9;
        let checksum = checksum(&bytes[..HEADER - 4], &bytes[HEADER..]).to_le_bytes();
        bytes[HEADER - 4..HEADER].copy_from_slice(&checksum);
        let error = Checkpoint::decode(&bytes).unwrap_err();
        assert!(matches!(error, CheckpointError::Version { found: 9 }));
    }

    #[test]
    fn a_difference_names_what_it_is_about() {
        let facts = |value: &str| {
            RunIdentity::of(BTreeMap::from([(
                "the target table".to_owned(),
                value.to_owned(),
            )]))
        };
        assert_eq!(facts("a").difference(&facts("a")), None);
        assert_eq!(
            facts("a").difference(&facts("b")).unwrap(),
            "the target table was a and is b"
        );
        assert_eq!(
            facts("a")
                .difference(&RunIdentity::of(BTreeMap::new()))
                .unwrap(),
            "the target table was a and is not there"
        );
    }

    #[test]
    fn a_checkpoint_that_names_the_server_beside_its_tables_goes_on_without() {
        let facts = |server: Option<&str>| {
            let server = server.map(|server| (SERVER.to_owned(), server.to_owned()));
            let table = ("the target table".to_owned(), "a".to_owned());
            RunIdentity::of(server.into_iter().chain([table]).collect())
        };
        let before = facts(Some("http://a"));
        assert_eq!(before.difference(&facts(None)), None);
        assert_eq!(facts(None).difference(&before), None);
        let other = before.difference(&facts(Some("http://b"))).unwrap();
        assert_eq!(other, "the server was http://a and is http://b");
    }

    #[test]
    fn events_are_the_same_whatever_was_added_to_the_tables_since() {
        let facts = |target: &str, columns: u32| {
            let columns = (0..columns).map(|column| {
                let name = format!("column c{column} of the target table");
                (name, "String".to_owned())
            });
            let target = ("the target table".to_owned(), target.to_owned());
            RunIdentity::of(columns.chain([target]).collect())
        };
        let run = facts("a.events", 2);
        assert_eq!(run.difference_in_events(&facts("a.events", 3)), None);
        assert!(run.difference(&facts("a.events", 3)).is_some());
        let other = run.difference_in_events(&facts("b.events", 2)).unwrap();
        assert_eq!(other, "the target table was a.events and is b.events");
        let with = |change: &dyn Fn(&mut Subject)| {
            let mut identity = run.clone();
            change(&mut identity.subject);
            identity
        };
        let asked_for = with(&|subject| subject.asked.experiments = Choice::On);
        assert_eq!(run.difference_in_events(&asked_for), None);
        let until = with(&|subject| subject.until = Some(1));
        assert!(run.difference_in_events(&until).is_some());
        assert_eq!(until.difference_in_events(&run), None);
        let experiments = with(&|subject| subject.experiments = true);
        assert!(run.difference_in_events(&experiments).is_some());
    }
}
