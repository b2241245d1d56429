//! What a repair is to write, on disk: rows, days of projects of which all rows are to be written,
//! and those of which a view's table lacks something. In the order in which they are read.

use rocksdb::IteratorMode;

use super::error::StoreError;
use super::families::WANTED;
use super::store::TraceStore;
use crate::memory::numbers::short;
use crate::partition::Day;

/// What a key is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WantedDay {
    /// All observations of the day are to be written.
    Rows,
    /// The root spans of all traces of the day are to be written.
    Roots,
    /// The view's table lacks rows of it.
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

/// A row that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedRow {
    /// Number of the source.
    pub source: u8,
    /// The project.
    pub project: Vec<u8>,
    /// The day on which it starts.
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

/// Appends a text so that the order of keys is that of the texts.
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
    /// Keeps a row that is to be written.
    ///
    /// # Errors
    /// [`StoreError::Database`] where the disk is full.
    pub fn want_row(&self, row: &WantedRow) -> Result<(), StoreError> {
        self.put_wanted(&row.key(), b"")
    }

    /// Keeps a day of a project.
    ///
    /// # Errors
    /// [`StoreError::Database`] where the disk is full.
    pub fn want_day(&self, what: WantedDay, project: &[u8], day: Day) -> Result<(), StoreError> {
        let mut key = vec![what.tag()];
        put_text(&mut key, project);
        key.extend(day.to_be_bytes());
        self.put_wanted(&key, b"")
    }

    /// Keeps the first and the last row of a piece of work.
    ///
    /// # Errors
    /// [`StoreError::Database`] where the disk is full.
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

    /// The rows of a piece of work; none where it is whole days.
    ///
    /// # Errors
    /// [`StoreError`] where the store fails, or is damaged.
    pub fn rows_of_piece(&self, number: u32) -> Result<Option<Vec<WantedRow>>, StoreError> {
        let mut key = vec![PIECE];
        key.extend(number.to_be_bytes());
        let family = self.family(WANTED)?;
        let value = self.database.get_cf(&family, &key);
        let Some(value) = value.map_err(|error| self.failed(error))? else {
            return Ok(None);
        };
        let damaged = || StoreError::Record("a piece of a repair".to_owned());
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

    /// Goes through all rows that are to be written, in their order.
    ///
    /// # Errors
    /// [`StoreError`] where the store fails, or that of `take`.
    pub fn for_each_wanted(
        &self,
        mut take: impl FnMut(WantedRow) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.walk_wanted(&[ROW], |key| match WantedRow::decode(key) {
            Some(row) => take(row).map(|()| true),
            None => Ok(false),
        })
    }

    /// The days of projects that were kept.
    ///
    /// # Errors
    /// [`StoreError`] where the store fails.
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

    /// Goes through keys from one on, as long as `take` says so.
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
