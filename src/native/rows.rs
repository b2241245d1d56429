//! Extracts rows of a block into blocks of their own.

use std::ops::Range;

use bytes::Bytes;

use super::column::StringCursor;
use super::error::NativeError;
use super::reader::{Block, Column, Spliced};
use super::types::Layout;
use super::writer::{put_block_header, put_column_header};
use crate::memory::buffer_pool::PooledBuffer;
use crate::memory::numbers::{in_memory, whole};

/// A set of rows to extract.
#[derive(Debug)]
pub struct Share<'a> {
    /// The rows, in ascending order.
    pub rows: &'a [Range<usize>],
    /// The destination buffer.
    pub buffer: PooledBuffer,
}

impl Block {
    /// Extracts the rows in `ranges` (ascending) into a block in `buffer`.
    ///
    /// # Errors
    /// [`NativeError::Corrupt`] if a column ends before its last row.
    pub fn take_rows(
        &self,
        ranges: &[Range<usize>],
        buffer: PooledBuffer,
    ) -> Result<Self, NativeError> {
        let share = Share {
            rows: ranges,
            buffer,
        };
        let [taken] = self.divide([share], |_, _| false)?;
        Ok(taken)
    }

    /// Extracts several disjoint shares, each into a block. For the first share, string columns
    /// accepted by `splice` are not copied: they stay in place and [`Block::values`] does not
    /// return them. `splice` receives the column's index and its average number of contiguous
    /// bytes.
    ///
    /// # Errors
    /// [`NativeError::Corrupt`] if a column ends before its last row.
    pub fn divide<const N: usize>(
        &self,
        shares: [Share<'_>; N],
        mut splice: impl FnMut(usize, usize) -> bool,
    ) -> Result<[Self; N], NativeError> {
        let runs = Runs::of(&shares);
        let values: Vec<Bytes> = (0..self.columns.len())
            .map(|index| self.whole_values(index))
            .collect();
        let layouts = self.layouts()?;
        let is_spliced: Vec<bool> = (values.iter().enumerate())
            .map(|(index, values)| {
                let side_by_side = values.len() / runs.0.len().max(1);
                layouts[index] == Layout::String && splice(index, side_by_side)
            })
            .collect();
        let copied = values
            .iter()
            .zip(&is_spliced)
            .filter(|(_, spliced)| !**spliced);
        let copied: usize = copied.map(|(values, _)| values.len()).sum();
        let all: usize = values.iter().map(Bytes::len).sum();
        let mut number = 0;
        let mut divided = shares.map(|share| {
            let bytes = if number == 0 { copied } else { all };
            number += 1;
            Divided::begin(self, share, bytes)
        });
        for (index, column) in self.columns.iter().enumerate() {
            for part in &mut divided {
                part.begin_column(column);
            }
            let mut rest = &values[index][..];
            match is_spliced[index] {
                true => splice_strings(&values[index], self.rows, &runs, index, &mut divided)?,
                false => {
                    let mut outs = divided.each_mut().map(|part| &mut *part.buffer);
                    take_values(&layouts[index], &mut rest, self.rows, &runs, &mut outs)?;
                }
            }
            for part in &mut divided {
                part.end_column(column);
            }
        }
        Ok(divided.map(|part| part.finish(self)))
    }

    fn layouts(&self) -> Result<Vec<Layout>, NativeError> {
        let layout = |column: &Column| {
            column.data_type.layout().map_err(|error| {
                let column = column.name.to_string();
                NativeError::Type { column, error }
            })
        };
        self.columns.iter().map(layout).collect()
    }
}

/// Contiguous runs of rows, ascending, each with the number of its share.
struct Runs(Vec<(Range<usize>, usize)>);

impl Runs {
    fn of(shares: &[Share<'_>]) -> Self {
        let of_share = |(number, share): (usize, &Share<'_>)| {
            let runs = share.rows.iter().filter(|run| !run.is_empty()).cloned();
            runs.map(|run| (run, number)).collect::<Vec<_>>()
        };
        let mut runs: Vec<_> = shares.iter().enumerate().flat_map(of_share).collect();
        runs.sort_unstable_by_key(|(run, _)| run.start);
        Self(runs)
    }
}

/// A share being filled.
struct Divided {
    rows: usize,
    buffer: PooledBuffer,
    columns: Vec<Column>,
    start: usize,
    values: usize,
    spliced: Vec<Spliced>,
}

impl Divided {
    /// Starts a share of columns that total `bytes`.
    fn begin(block: &Block, share: Share<'_>, bytes: usize) -> Self {
        let rows = share.rows.iter().map(Range::len).sum();
        let mut buffer = share.buffer;
        // Reserve roughly what it needs, so that the buffer does not grow by copying.
        let part = rows as f64 / block.rows.max(1) as f64;
        let bytes = bytes as f64 * part.min(1.0) * 1.05;
        buffer.reserve_exact(in_memory(whole(bytes)) + 4096);
        put_block_header(&mut buffer, block.columns.len(), rows);
        Self {
            rows,
            buffer,
            columns: Vec::with_capacity(block.columns.len()),
            start: 0,
            values: 0,
            spliced: Vec::new(),
        }
    }

    fn begin_column(&mut self, column: &Column) {
        self.start = self.buffer.len();
        let data_type = column.data_type.to_string();
        put_column_header(&mut self.buffer, &column.name, &data_type);
        self.values = self.buffer.len();
    }

    fn end_column(&mut self, column: &Column) {
        self.columns.push(Column {
            name: column.name.clone(),
            data_type: column.data_type.clone(),
            values: self.values..self.buffer.len(),
            start: self.start,
        });
    }

    fn finish(self, block: &Block) -> Block {
        let of_block = match self.spliced.is_empty() {
            true => 0,
            false => block.held_bytes,
        };
        Block {
            rows: self.rows,
            columns: self.columns,
            held_bytes: self.buffer.capacity() + of_block,
            bytes: self.buffer.freeze(),
            spliced: self.spliced,
        }
    }
}

fn exhausted() -> NativeError {
    NativeError::corrupt("a column ends before its last row")
}

/// Distributes a string column's values; the first share's stay in place.
fn splice_strings(
    values: &Bytes,
    count: usize,
    runs: &Runs,
    column: usize,
    divided: &mut [Divided],
) -> Result<(), NativeError> {
    let mut rest = &values[..];
    let mut pieces = Vec::with_capacity(runs.0.len());
    let mut row = 0;
    for (run, share) in &runs.0 {
        skip_strings(&mut rest, run.start.checked_sub(row).ok_or_else(exhausted)?)?;
        let begin = values.len() - rest.len();
        skip_strings(&mut rest, run.len())?;
        let taken = begin..values.len() - rest.len();
        match share {
            0 => pieces.push(values.slice(taken)),
            share => divided[*share].buffer.extend_from_slice(&values[taken]),
        }
        row = run.end;
    }
    if row > count {
        return Err(exhausted());
    }
    if let [first, ..] = divided {
        first.spliced.push(Spliced { column, pieces });
    }
    Ok(())
}

/// Copies the values in `runs` to their shares' buffers, and advances `rest` past all `count`
/// values.
fn take_values(
    layout: &Layout,
    rest: &mut &[u8],
    count: usize,
    runs: &Runs,
    outs: &mut [&mut Vec<u8>],
) -> Result<(), NativeError> {
    match layout {
        Layout::Fixed(width) => take_fixed(*width, rest, count, runs, outs),
        Layout::String => take_strings(rest, count, runs, outs),
        Layout::Nullable(inner) => {
            take_fixed(1, rest, count, runs, outs)?;
            take_values(inner, rest, count, runs, outs)
        }
        Layout::Array(element) => {
            let elements = take_offsets(rest, count, runs, outs)?;
            take_values(element, rest, elements.count, &elements.runs, outs)
        }
        Layout::Map(key, value) => {
            let elements = take_offsets(rest, count, runs, outs)?;
            take_values(key, rest, elements.count, &elements.runs, outs)?;
            take_values(value, rest, elements.count, &elements.runs, outs)
        }
        Layout::Tuple(layouts) => layouts
            .iter()
            .try_for_each(|layout| take_values(layout, rest, count, runs, outs)),
    }
}

fn take_fixed(
    width: usize,
    rest: &mut &[u8],
    count: usize,
    runs: &Runs,
    outs: &mut [&mut Vec<u8>],
) -> Result<(), NativeError> {
    let length = width.checked_mul(count).ok_or_else(exhausted)?;
    let (values, after) = rest.split_at_checked(length).ok_or_else(exhausted)?;
    *rest = after;
    for (run, share) in &runs.0 {
        let bytes = values.get(run.start * width..run.end * width);
        outs[*share].extend_from_slice(bytes.ok_or_else(exhausted)?);
    }
    Ok(())
}

fn take_strings(
    rest: &mut &[u8],
    count: usize,
    runs: &Runs,
    outs: &mut [&mut Vec<u8>],
) -> Result<(), NativeError> {
    let mut row = 0;
    for (run, share) in &runs.0 {
        skip_strings(rest, run.start.checked_sub(row).ok_or_else(exhausted)?)?;
        let before = *rest;
        skip_strings(rest, run.len())?;
        outs[*share].extend_from_slice(&before[..before.len() - rest.len()]);
        row = run.end;
    }
    skip_strings(rest, count.checked_sub(row).ok_or_else(exhausted)?)
}

fn skip_strings(rest: &mut &[u8], count: usize) -> Result<(), NativeError> {
    let mut cursor = StringCursor::new(rest);
    let skipped = cursor.next_encoded(count)?.len();
    *rest = &rest[skipped..];
    Ok(())
}

/// The elements of an array column that belong to the extracted rows.
struct Elements {
    /// Number of elements in all rows.
    count: usize,
    runs: Runs,
}

/// Appends the runs' end offsets, recalculated, to their shares' buffers.
fn take_offsets(
    rest: &mut &[u8],
    count: usize,
    runs: &Runs,
    outs: &mut [&mut Vec<u8>],
) -> Result<Elements, NativeError> {
    let length = count.checked_mul(8).ok_or_else(exhausted)?;
    let (offsets, after) = rest.split_at_checked(length).ok_or_else(exhausted)?;
    *rest = after;
    let (offsets, _) = offsets.as_chunks::<8>();
    let end_of = |row: usize| -> Result<usize, NativeError> {
        let end = offsets.get(row).ok_or_else(exhausted)?;
        usize::try_from(u64::from_le_bytes(*end)).map_err(|_| exhausted())
    };
    // A row's elements start where the previous row's end.
    let start_of = |row: usize| match row {
        0 => Ok(0),
        row => end_of(row - 1),
    };
    let mut taken = vec![0_usize; outs.len()];
    let mut elements = Vec::with_capacity(runs.0.len());
    // Rows without elements yield empty runs.
    for (run, share) in runs.0.iter().filter(|(run, _)| !run.is_empty()) {
        let start = start_of(run.start)?;
        for row in run.clone() {
            let end = taken[*share] + end_of(row)?.checked_sub(start).ok_or_else(exhausted)?;
            outs[*share].extend_from_slice(&(end as u64).to_le_bytes());
        }
        let end = end_of(run.end - 1)?;
        taken[*share] += end - start;
        elements.push((start..end, *share));
    }
    Ok(Elements {
        count: start_of(count)?,
        runs: Runs(elements),
    })
}
