//! What a repair has to write, stored in read order: single rows, whole days of projects, and days
//! missing from the view's table.

use rocksdb::IteratorMode;

use super::error::StoreError;
use super::families::WANTED;
use super::store::TraceStore;
use crate::memory::numbers::short;
use crate::partition::Day;

/// What a stored day means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WantedDay {
    /// Write all observations of the day.
    Rows,
    /// Write the root spans of all traces of the day.
    Roots,
    /// The view's table lacks rows of the day.
    Core,
}

impl WantedDay {
    const fn tag(self) -> u8 {
        match self {
            WantedDay::Rows => b'd',
            WantedDay::Roots => b't',
            WantedDay::Core => b'c',
        }
    }
}

const ROW: u8 = b'r';
const PIECE: u8 = b'p';

/// A row to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedRow {
    /// The source's number.
    pub source: u8,
    /// The project.
    pub project: Vec<u8>,
    /// The day it starts on.
    pub day: Day,
    /// The trace.
    pub trace_id: Vec<u8>,
    /// The span.
    pub span_id: Vec<u8>,
}

impl WantedRow {
    fn key(&self) -> Vec<u8> {
        let mut key = vec![ROW, self.source];
        put_text(&mut key, &self.project);
        key.extend(self.day.to_be_bytes());
        put_text(&mut key, &self.trace_id);
        put_text(&mut key, &self.span_id);
        key
    }

    fn decode(key: &[u8]) -> Option<Self> {
        let (&[tag, source], rest) = key.split_first_chunk::<2>()?;
        let (project, rest) = take_text(rest)?;
        let (&day, rest) = rest.split_first_chunk::<2>()?;
        let (trace_id, rest) = take_text(rest)?;
        let (span_id, rest) = take_text(rest)?;
        (tag == ROW && rest.is_empty()).then_some(Self {
            source,
            project,
            day: Day::from_be_bytes(day),
            trace_id,
            span_id,
        })
    }
}

/// Appends a text such that keys sort like texts.
fn put_text(key: &mut Vec<u8>, text: &[u8]) {
    for &byte in text {
        key.push(byte);
        if byte == 0 {
            key.push(0xFF);
        }
    }
    key.extend([0, 0]);
}

fn take_text(key: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut text = Vec::new();
    let mut rest = key;
    loop {
        match rest {
            [0, 0, after @ ..] => return Some((text, after)),
            [0, 0xFF, after @ ..] => {
                text.push(0);
                rest = after;
            }
            [0, ..] | [] => return None,
            [byte, after @ ..] => {
                text.push(*byte);
                rest = after;
            }
        }
    }
}

impl TraceStore {
    /// Stores a row to write.
    ///
    /// # Errors
    /// [`StoreError::Database`] if RocksDB fails, for example on a full disk.
    pub fn want_row(&self, row: &WantedRow) -> Result<(), StoreError> {
        self.put_wanted(&row.key(), b"")
    }

    /// Stores a day of a project.
    ///
    /// # Errors
    /// [`StoreError::Database`] if RocksDB fails, for example on a full disk.
    pub fn want_day(&self, what: WantedDay, project: &[u8], day: Day) -> Result<(), StoreError> {
        let mut key = vec![what.tag()];
        put_text(&mut key, project);
        key.extend(day.to_be_bytes());
        self.put_wanted(&key, b"")
    }

    /// Stores the first and last row of a work item.
    ///
    /// # Errors
    /// [`StoreError::Database`] if RocksDB fails, for example on a full disk.
    pub fn put_piece(
        &self,
        number: u32,
        first: &WantedRow,
        last: &WantedRow,
    ) -> Result<(), StoreError> {
        let (first, last) = (first.key(), last.key());
        let mut value = short(first.len()).to_be_bytes().to_vec();
        value.extend(first);
        value.extend(last);
        let mut key = vec![PIECE];
        key.extend(number.to_be_bytes());
        self.put_wanted(&key, &value)
    }

    /// The rows of a work item, or `None` if it covers whole days.
    ///
    /// # Errors
    /// [`StoreError`] if RocksDB fails or a record is damaged.
    pub fn rows_of_piece(&self, number: u32) -> Result<Option<Vec<WantedRow>>, StoreError> {
        let mut key = vec![PIECE];
        key.extend(number.to_be_bytes());
        let family = self.family(WANTED)?;
        let value = self.database.get_cf(&family, &key);
        let Some(value) = value.map_err(|error| self.failed(error))? else {
            return Ok(None);
        };
        let damaged = || StoreError::Record("a work item of a repair".to_owned());
        let (&length, rest) = value.split_first_chunk::<4>().ok_or_else(damaged)?;
        let length = u32::from_be_bytes(length) as usize;
        let (first, last) = rest.split_at_checked(length).ok_or_else(damaged)?;
        let mut rows = Vec::new();
        self.walk_wanted(first, |key| {
            let is_in = key <= last;
            if is_in {
                rows.push(WantedRow::decode(key).ok_or_else(damaged)?);
            }
            Ok(is_in)
        })?;
        Ok(Some(rows))
    }

    /// Visits all rows to write, in order.
    ///
    /// # Errors
    /// [`StoreError`] if RocksDB fails, or from `take`.
    pub fn for_each_wanted(
        &self,
        mut take: impl FnMut(WantedRow) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.walk_wanted(&[ROW], |key| match WantedRow::decode(key) {
            Some(row) => take(row).map(|()| true),
            None => Ok(false),
        })
    }

    /// The stored days of projects.
    ///
    /// # Errors
    /// [`StoreError`] if RocksDB fails or a key is damaged.
    pub fn wanted_days(&self, what: WantedDay) -> Result<Vec<(Vec<u8>, Day)>, StoreError> {
        let mut days = Vec::new();
        self.walk_wanted(&[what.tag()], |key| {
            if key.first() != Some(&what.tag()) {
                return Ok(false);
            }
            let parts = take_text(&key[1..]).and_then(|(project, rest)| {
                let day = Day::from_be_bytes(rest.try_into().ok()?);
                Some((project, day))
            });
            days.push(parts.ok_or_else(|| StoreError::Record("a day of a repair".to_owned()))?);
            Ok(true)
        })?;
        Ok(days)
    }

    fn put_wanted(&self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let put = self.database.put_cf(&self.family(WANTED)?, key, value);
        put.map_err(|error| self.failed(error))
    }

    /// Visits keys starting at one, while `take` returns true.
    fn walk_wanted(
        &self,
        from: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let family = self.family(WANTED)?;
        let mode = IteratorMode::From(from, rocksdb::Direction::Forward);
        for item in self.database.iterator_cf(&family, mode) {
            let (key, _) = item.map_err(|error| self.failed(error))?;
            if !take(&key)? {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_key_gives_its_row_back_and_keys_have_the_order_of_projects(
            one in proptest::collection::vec(0_u8..3, 0..6),
            other in proptest::collection::vec(0_u8..3, 0..6),
            span in proptest::collection::vec(any::<u8>(), 0..6),
        ) {
            let row = |project: &[u8]| WantedRow {
                source: 1,
                project: project.to_vec(),
                day: 7,
                trace_id: span.clone(),
                span_id: span.clone(),
            };
            prop_assert_eq!(WantedRow::decode(&row(&one).key()), Some(row(&one)));
            prop_assert_eq!(row(&one).key().cmp(&row(&other).key()), one.cmp(&other));
        }
    }

    #[test]
    fn pieces_and_days_outlive_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let row = |number: u8| WantedRow {
            source: 0,
            project: b"p".to_vec(),
            day: 3,
            trace_id: vec![number],
            span_id: vec![number],
        };
        let store = TraceStore::open(directory.path(), 1 << 20).unwrap();
        for number in 0..10 {
            store.want_row(&row(number)).unwrap();
        }
        store.put_piece(4, &row(2), &row(5)).unwrap();
        store.want_day(WantedDay::Core, b"q\0", 9).unwrap();
        drop(store);
        let store = TraceStore::open(directory.path(), 1 << 20).unwrap();
        let rows: Vec<WantedRow> = (2..=5).map(row).collect();
        assert_eq!(store.rows_of_piece(4).unwrap(), Some(rows));
        assert_eq!(store.rows_of_piece(5).unwrap(), None);
        let days = store.wanted_days(WantedDay::Core).unwrap();
        assert_eq!(days, [(b"q\0".to_vec(), 9)]);
        assert!(store.wanted_days(WantedDay::Rows).unwrap().is_empty());
        let mut count = 0;
        let counted = store.for_each_wanted(|_| {
            count += 1;
            Ok(())
        });
        counted.unwrap();
        assert_eq!(count, 10);
    }
}
