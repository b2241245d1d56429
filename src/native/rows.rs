//! Some rows of a block, as a block of their own.

use std::ops::Range;

use super::error::NativeError;
use super::reader::{Block, Column};
use super::types::Layout;
use super::writer::{put_block_header, put_column_header};
use crate::memory::buffer_pool::PooledBuffer;
use crate::memory::numbers::{in_memory, whole};

impl Block {
    /// The rows in `ranges`, which must be ascending, as a block in `buffer`.
    ///
    /// # Errors
    /// [`NativeError::Corrupt`] where a column ends before its last row.
    pub fn take_rows(
        &self,
        ranges: &[Range<usize>],
        mut buffer: PooledBuffer,
    ) -> Result<Self, NativeError> {
        let rows = ranges.iter().map(Range::len).sum();
        // About as much as they will take, so that the buffer is not copied while it grows.
        let share = rows as f64 / self.rows.max(1) as f64;
        buffer.reserve_exact(
            in_memory(whole(self.bytes.len() as f64 * share.min(1.0) * 1.05)) + 4096,
        );
        put_block_header(&mut buffer, self.columns.len(), rows);
        let mut columns = Vec::with_capacity(self.columns.len());
        for column in &self.columns {
            let layout = column.data_type.layout().map_err(|error| {
                let column = column.name.to_string();
                NativeError::Type { column, error }
            })?;
            let start = buffer.len();
            put_column_header(&mut buffer, &column.name, &column.data_type.to_string());
            let values = buffer.len();
            let mut rest = &self.bytes[column.values.clone()];
            take_values(&layout, &mut rest, self.rows, ranges, &mut buffer)?;
            columns.push(Column {
                name: column.name.clone(),
                data_type: column.data_type.clone(),
                values: values..buffer.len(),
                start,
            });
        }
        let held_bytes = buffer.capacity();
        Ok(Self {
            rows,
            columns,
            bytes: buffer.freeze(),
            held_bytes,
        })
    }
}

fn exhausted() -> NativeError {
    NativeError::corrupt("a column ends before its last row")
}

/// Appends those of `count` values that are in `ranges`, and moves `rest` behind all of them.
fn take_values(
    layout: &Layout,
    rest: &mut &[u8],
    count: usize,
    ranges: &[Range<usize>],
    out: &mut Vec<u8>,
) -> Result<(), NativeError> {
    match layout {
        Layout::Fixed(width) => take_fixed(*width, rest, count, ranges, out),
        Layout::String => take_strings(rest, count, ranges, out),
        Layout::Nullable(inner) => {
            take_fixed(1, rest, count, ranges, out)?;
            take_values(inner, rest, count, ranges, out)
        }
        Layout::Array(element) => {
            let elements = take_offsets(rest, count, ranges, out)?;
            take_values(element, rest, elements.count, &elements.ranges, out)
        }
        Layout::Map(key, value) => {
            let elements = take_offsets(rest, count, ranges, out)?;
            take_values(key, rest, elements.count, &elements.ranges, out)?;
            take_values(value, rest, elements.count, &elements.ranges, out)
        }
        Layout::Tuple(layouts) => layouts
            .iter()
            .try_for_each(|layout| take_values(layout, rest, count, ranges, out)),
    }
}

fn take_fixed(
    width: usize,
    rest: &mut &[u8],
    count: usize,
    ranges: &[Range<usize>],
    out: &mut Vec<u8>,
) -> Result<(), NativeError> {
    let length = width.checked_mul(count).ok_or_else(exhausted)?;
    let (values, after) = rest.split_at_checked(length).ok_or_else(exhausted)?;
    *rest = after;
    for range in ranges {
        let bytes = values.get(range.start * width..range.end * width);
        out.extend_from_slice(bytes.ok_or_else(exhausted)?);
    }
    Ok(())
}

fn take_strings(
    rest: &mut &[u8],
    count: usize,
    ranges: &[Range<usize>],
    out: &mut Vec<u8>,
) -> Result<(), NativeError> {
    let mut row = 0;
    for range in ranges {
        skip_strings(rest, range.start.checked_sub(row).ok_or_else(exhausted)?)?;
        let before = *rest;
        skip_strings(rest, range.len())?;
        out.extend_from_slice(&before[..before.len() - rest.len()]);
        row = range.end;
    }
    skip_strings(rest, count.checked_sub(row).ok_or_else(exhausted)?)
}

fn skip_strings(rest: &mut &[u8], count: usize) -> Result<(), NativeError> {
    let mut cursor = super::column::StringCursor::new(rest);
    let skipped = cursor.next_encoded(count)?.len();
    *rest = &rest[skipped..];
    Ok(())
}

/// Which elements of an array column belong to the rows that are taken.
struct Elements {
    /// Elements of all rows.
    count: usize,
    ranges: Vec<Range<usize>>,
}

/// Appends the end offsets of the rows in `ranges`, counted anew.
fn take_offsets(
    rest: &mut &[u8],
    count: usize,
    ranges: &[Range<usize>],
    out: &mut Vec<u8>,
) -> Result<Elements, NativeError> {
    let length = count.checked_mul(8).ok_or_else(exhausted)?;
    let (offsets, after) = rest.split_at_checked(length).ok_or_else(exhausted)?;
    *rest = after;
    let (offsets, _) = offsets.as_chunks::<8>();
    let end_of = |row: usize| -> Result<usize, NativeError> {
        let end = offsets.get(row).ok_or_else(exhausted)?;
        usize::try_from(u64::from_le_bytes(*end)).map_err(|_| exhausted())
    };
    // Where the elements of a row begin is where those of the row before end.
    let start_of = |row: usize| match row {
        0 => Ok(0),
        row => end_of(row - 1),
    };
    let mut taken = 0_usize;
    let mut elements = Vec::with_capacity(ranges.len());
    for range in ranges.iter().filter(|range| !range.is_empty()) {
        let start = start_of(range.start)?;
        for row in range.clone() {
            let end = taken + end_of(row)?.checked_sub(start).ok_or_else(exhausted)?;
            out.extend_from_slice(&(end as u64).to_le_bytes());
        }
        let end = end_of(range.end - 1)?;
        taken += end - start;
        elements.push(start..end);
    }
    Ok(Elements {
        count: start_of(count)?,
        ranges: elements,
    })
}
