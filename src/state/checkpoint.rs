//! The progress of a run on disk, so that another process can continue it.
//!
//! The file has 8 magic bytes, the format's version (`u32`), the length of the payload (`u64`), a CRC-32 of all
//! of these and the payload (`u32`), all little-endian, then the payload in bincode. It is replaced as a whole:
//! written to a temporary file, synced, renamed, and the directory synced.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::Path;

use bincode::config::{Config, standard};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::counts::{DeferredCounts, ExperimentCounts, SegmentCounts, TargetState};
use super::files::advice_on_files;
use crate::cli::options::{Engine, Options, Subject};
use crate::clickhouse::TableInfo;
use crate::error::Error;
use crate::inspect::Inspected;
use crate::inspect::segments::Segment;
use crate::mapping::Source;
use crate::partition::{Day, seconds_since_1970};

const MAGIC: &[u8; 8] = b"EVBACKFL";
/// Increase it whenever [`Checkpoint`] or the contents of the trace store change.
const FORMAT_VERSION: u32 = 8;
/// Maximum bytes that a length in the payload may claim; otherwise a damaged file could ask for more memory
/// than there is.
const MAX_PAYLOAD: usize = 256 * 1024 * 1024;
/// Magic, version, length, checksum.
const HEADER: usize = 8 + 4 + 8 + 4;

/// Everything a resumed run needs to know about earlier work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The settings and tables of the run.
    pub identity: RunIdentity,
    /// Name of the run, also recorded in its trace store.
    pub run_id: String,
    /// When the run began, in seconds since 1970.
    pub started_at: u64,
    /// When this was written, in seconds since 1970.
    pub saved_at: u64,
    /// Days whose traces are in the store, with rows read and traces not deleted.
    pub days: BTreeMap<Day, (u64, u64)>,
    /// Outdated versions among the loaded ones, once all days are loaded and settled.
    pub superseded: Option<u64>,
    /// The plan, once it exists.
    pub segments: Option<Vec<Segment>>,
    /// The state of the target before anything was written, once known.
    pub target: Option<TargetState>,
    /// Segments that were started and are not done: the target may have rows of them.
    pub begun: BTreeSet<u32>,
    /// Segments whose deferred rows were started and are not done.
    pub deferred_begun: BTreeSet<u32>,
    /// Segments that were started more than once: the target may have rows of them that the table filled by its
    /// view lacks.
    pub repeated: BTreeSet<u32>,
    /// Traces that were loaded again because they had changed.
    pub traces_reloaded: u64,
    /// Of these, traces that changed after events had been written.
    pub traces_changed: u64,
    /// Segments that are done, except for their deferred rows.
    pub done: BTreeMap<u32, SegmentCounts>,
    /// Deferred rows that are not done yet, by segment.
    pub deferred: BTreeMap<u32, DeferredCounts>,
    /// Deferred rows that are done, by segment.
    pub deferred_done: BTreeMap<u32, SegmentCounts>,
    /// The outcome for traces that were looked up in other months.
    pub remote: RemoteTraces,
    /// Counts of experiments, if wanted and once known.
    pub experiments: Option<ExperimentCounts>,
    /// Whether everything is done.
    pub finished: bool,
}

/// Traces outside the loaded days.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteTraces {
    /// How many were looked up in ClickHouse.
    pub asked: u64,
    /// How many of them it has, in any month.
    pub found: u64,
    /// Project and id of some of those not found.
    pub not_found: Vec<(ByteBuf, ByteBuf)>,
}

/// The settings and tables of a run. It must not be continued with others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunIdentity {
    /// The options that define which events are written.
    pub(crate) subject: Subject,
    /// Month and tables, as readable pairs of name and value.
    facts: BTreeMap<String, String>,
}

impl RunIdentity {
    /// An identity of these facts, with default options.
    pub fn of(facts: BTreeMap<String, String>) -> Self {
        Self {
            subject: Subject::default(),
            facts,
        }
    }

    /// The identity of a run with these options on these tables.
    pub(crate) fn new(options: &Options, inspected: &Inspected) -> Self {
        let partition = options.partition.to_string();
        let mut facts = BTreeMap::from([("the partition".to_owned(), partition)]);
        if let Some(shard) = options.shard {
            facts.insert(SHARD.to_owned(), shard.to_string());
        }
        if options.engine != Engine::default() {
            facts.insert(ENGINE.to_owned(), options.engine.name().to_owned());
        }
        let reads_items = options.subject.reads_dataset_items();
        let dataset_items = inspected.dataset_items.as_ref().filter(|_| reads_items);
        let tables = [
            ("the observations", Some(&inspected.observations)),
            ("the traces", Some(&inspected.traces)),
            ("the target", Some(&inspected.target)),
            ("the dataset run items", dataset_items),
        ];
        // Tables are identified by UUID, not by address: replicas share it, and a load balancer's address may
        // change.
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

    /// The most telling difference as a sentence, if there is one.
    pub(crate) fn difference(&self, now: &Self) -> Option<String> {
        most_telling(&self.all_facts(), &now.all_facts())
    }

    /// Like [`RunIdentity::difference`], but only for what decides which events there are: ignores the columns,
    /// which verify compares as they are now, and how an option was given. A default --until is compared later.
    pub(crate) fn difference_in_events(&self, now: &Self) -> Option<String> {
        let facts = [self, now].map(|identity| {
            let mut facts = identity.all_facts();
            // verify and repair look at all shards of a month.
            let is_how = |name: &str| name.starts_with(COLUMN) || [SHARD, ENGINE].contains(&name);
            facts.retain(|name, _| !is_how(name));
            facts.insert("--experiments", identity.subject.experiments.to_string());
            if now.subject.until.is_none() {
                facts.remove("--until");
            }
            facts
        });
        most_telling(&facts[0], &facts[1])
    }

    /// Whether both write to one table.
    pub(crate) fn has_target_of(&self, other: &Self) -> bool {
        let target = |identity: &Self| {
            ["the target table", "the identity of the target table"]
                .map(|name| identity.facts.get(name).cloned())
        };
        target(self) == target(other)
    }

    fn all_facts(&self) -> BTreeMap<&str, String> {
        let facts = self.facts.iter();
        let facts = facts.map(|(name, value)| (name.as_str(), value.clone()));
        let mut facts: BTreeMap<_, _> = facts.chain(self.subject.facts()).collect();
        let default = || Engine::default().name().to_owned();
        facts.entry(ENGINE).or_insert_with(default);
        facts
    }
}

/// The fact that names the server, for tables without UUIDs.
const SERVER: &str = "the server";

/// The fact that names the engine, if it is not the default.
const ENGINE: &str = "--engine";

/// The fact that names the shard.
const SHARD: &str = "the shard";

/// Prefix of the names of facts about columns.
const COLUMN: &str = "column ";

/// The difference, if there is one; of several, the one that explains the others.
fn most_telling(before: &BTreeMap<&str, String>, now: &BTreeMap<&str, String>) -> Option<String> {
    let names = before.keys().chain(now.keys());
    // Checkpoints of earlier versions name the server even if the tables have UUIDs.
    let is_told_otherwise =
        |name: &&&str| **name == SERVER && before.contains_key(SERVER) != now.contains_key(SERVER);
    // A different server or database explains different columns and UUIDs.
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
        value.unwrap_or_else(|| "missing".to_owned())
    };
    Some(format!(
        "{name} was {} and is now {}",
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
    /// The file cannot be read.
    #[error("{0}")]
    File(#[from] std::io::Error),
    /// The bytes are not those that were written.
    #[error("it is damaged ({0})")]
    Damaged(&'static str),
    /// Another version of this program wrote it.
    #[error("it has format {found}, but this version of the program reads format {FORMAT_VERSION}")]
    Version {
        /// Its format.
        found: u32,
    },
}

impl Checkpoint {
    /// The checkpoint of a run that has just started.
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

    /// Whether Langfuse itself has written to the target, as far as the run has looked.
    pub(crate) fn has_live_rows(&self) -> bool {
        let target = self.target.as_ref();
        target.is_some_and(|target| target.has_live_rows)
    }

    /// Traces in their current version.
    pub fn traces(&self) -> u64 {
        let loaded: u64 = self.days.values().map(|(_, traces)| traces).sum();
        loaded.saturating_sub(self.superseded.unwrap_or(0))
    }

    /// Whether the search for spans of dataset runs comes next.
    pub fn awaits_experiments(&self) -> bool {
        self.superseded.is_some() && self.identity.subject.experiments && self.experiments.is_none()
    }

    /// Total counts of a source's finished work.
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

    /// Segments of a source in the plan.
    pub fn segments_of(&self, source: Source) -> impl Iterator<Item = &Segment> {
        let segments = self.segments.iter().flatten();
        segments.filter(move |segment| segment.source == source)
    }

    /// The segment with this number.
    pub fn segment(&self, number: u32) -> Option<&Segment> {
        let mut segments = self.segments.iter().flatten();
        segments.find(|segment| segment.number == number)
    }

    /// Segments that may have rows in the target that no checkpoint counts.
    pub fn in_doubt(&self) -> impl Iterator<Item = &Segment> {
        let numbers = self.begun.union(&self.deferred_begun);
        numbers.filter_map(|&number| self.segment(number))
    }

    /// Deferred rows of a source that are not done yet.
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

    /// Segments with a failed attempt that may have written rows.
    pub(crate) fn repeated_segments(&self) -> impl Iterator<Item = &Segment> {
        let numbers = self.repeated.iter();
        numbers.filter_map(|&number| self.segment(number))
    }

    /// Unfinished segments of a source.
    pub fn remaining(&self, source: Source) -> Vec<Segment> {
        self.segments_of(source)
            .filter(|segment| !self.done.contains_key(&segment.number))
            .cloned()
            .collect()
    }

    /// Reads a checkpoint; `None` if there is none.
    ///
    /// # Errors
    /// [`CheckpointError`] if there is one that cannot be used.
    pub fn read(path: &Path) -> Result<Option<Self>, CheckpointError> {
        match std::fs::read(path) {
            Ok(bytes) => Self::decode(&bytes).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Like [`Checkpoint::write`], with an error that says what to do.
    ///
    /// # Errors
    /// [`Error`] if the file cannot be written.
    pub(crate) fn keep(&self, path: &Path) -> Result<(), Error> {
        self.write(path).map_err(|error| {
            let what = format!("the checkpoint {} cannot be written", path.display());
            Error::caused(what, &error).with(advice_on_files(&error))
        })
    }

    /// Replaces the checkpoint at `path`, atomically and durably.
    ///
    /// # Errors
    /// The I/O error if it cannot be written; the old checkpoint is then still there.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(&self.encode()?)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        // Without this, a power failure may undo the rename.
        File::open(directory)?.sync_all()
    }

    /// Encodes it as the bytes of its file.
    ///
    /// # Errors
    /// In theory only: encoding into memory does not fail.
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

    /// Decodes the bytes of a checkpoint file.
    ///
    /// # Errors
    /// [`CheckpointError`] if they are not exactly those that were written.
    pub fn decode(bytes: &[u8]) -> Result<Self, CheckpointError> {
        use CheckpointError::{Damaged, Version};
        let (header, payload) = bytes
            .split_at_checked(HEADER)
            .ok_or(Damaged("it is too short"))?;
        let (described, stored_checksum) = header.split_at(HEADER - 4);
        if !described.starts_with(MAGIC) {
            return Err(Damaged("it does not start like a checkpoint"));
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

/// A name that no other run has.
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
            "the target table was a and is now b"
        );
        assert_eq!(
            facts("a")
                .difference(&RunIdentity::of(BTreeMap::new()))
                .unwrap(),
            "the target table was a and is now missing"
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
        assert_eq!(other, "the server was http://a and is now http://b");
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
        assert_eq!(other, "the target table was a.events and is now b.events");
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
