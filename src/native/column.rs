//! Reads one column's values in row order, without copying.
//!
//! [`super::BlockReader`] has already walked the bytes, so running out of them means reading more
//! rows than the block has. That is an ordinary error, not a panic.

use super::error::NativeError;

fn exhausted() -> NativeError {
    NativeError::corrupt("a column ends before its last row")
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], NativeError> {
    let (taken, left) = rest.split_at_checked(length).ok_or_else(exhausted)?;
    *rest = left;
    Ok(taken)
}

fn take_varint(rest: &mut &[u8]) -> Result<usize, NativeError> {
    let mut value = 0_u64;
    for (index, &byte) in rest.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            *rest = &rest[index + 1..];
            return usize::try_from(value).map_err(|_| exhausted());
        }
    }
    Err(exhausted())
}

/// Reads a `String` column.
#[derive(Debug, Clone)]
pub struct StringCursor<'a> {
    rest: &'a [u8],
}

impl<'a> StringCursor<'a> {
    /// Starts at the first value of `values`.
    pub fn new(values: &'a [u8]) -> Self {
        Self { rest: values }
    }

    /// The next value.
    ///
    /// # Errors
    /// [`NativeError::Corrupt`] at the end of the column.
    pub fn next_value(&mut self) -> Result<&'a [u8], NativeError> {
        let length = take_varint(&mut self.rest)?;
        take(&mut self.rest, length)
    }

    /// The encoded bytes of the next `count` values, lengths included, ready to append to another
    /// column.
    ///
    /// # Errors
    /// [`NativeError::Corrupt`] if fewer remain.
    pub fn next_encoded(&mut self, count: usize) -> Result<&'a [u8], NativeError> {
        let start = self.rest;
        for _ in 0..count {
            self.next_value()?;
        }
        Ok(&start[..start.len() - self.rest.len()])
    }
}

/// Reads a `Nullable(String)` column.
#[derive(Debug, Clone)]
pub struct NullableStringCursor<'a> {
    flags: &'a [u8],
    values: StringCursor<'a>,
}

impl<'a> NullableStringCursor<'a> {
    /// Starts at the first of `rows` values.
    ///
    /// # Errors
    /// [`NativeError::Corrupt`] if there are fewer null flags than rows.
    pub fn new(mut values: &'a [u8], rows: usize) -> Result<Self, NativeError> {
        let flags = take(&mut values, rows)?;
        Ok(Self {
            flags,
            values: StringCursor::new(values),
        })
    }

    /// The next value, or `None` for null.
    ///
    /// # Errors
    /// [`NativeError::Corrupt`] at the end of the column.
    pub fn next_value(&mut self) -> Result<Option<&'a [u8]>, NativeError> {
        let flag = take(&mut self.flags, 1)?[0];
        let value = self.values.next_value()?;
        Ok((flag == 0).then_some(value))
    }
}

/// Reads a fixed-width column, `WIDTH` little-endian bytes per value.
#[derive(Debug, Clone)]
pub struct FixedCursor<'a, const WIDTH: usize> {
    rest: &'a [u8],
}

impl<'a, const WIDTH: usize> FixedCursor<'a, WIDTH> {
    /// Starts at the first value of `values`.
    pub fn new(values: &'a [u8]) -> Self {
        Self { rest: values }
    }

    /// The next value.
    ///
    /// # Errors
    /// [`NativeError::Corrupt`] at the end of the column.
    pub fn next_value(&mut self) -> Result<[u8; WIDTH], NativeError> {
        let (value, rest) = self.rest.split_first_chunk().ok_or_else(exhausted)?;
        self.rest = rest;
        Ok(*value)
    }
}

/// Reads the row lengths of an `Array` column.
#[derive(Debug, Clone)]
pub struct ArrayCursor<'a> {
    offsets: FixedCursor<'a, 8>,
    previous: u64,
}

impl<'a> ArrayCursor<'a> {
    /// Starts at the first of `rows` end offsets. Also returns the elements' bytes.
    ///
    /// # Errors
    /// [`NativeError::Corrupt`] if there are fewer offsets than rows.
    pub fn new(mut values: &'a [u8], rows: usize) -> Result<(Self, &'a [u8]), NativeError> {
        let offsets = take(&mut values, rows.checked_mul(8).ok_or_else(exhausted)?)?;
        let cursor = Self {
            offsets: FixedCursor::new(offsets),
            previous: 0,
        };
        Ok((cursor, values))
    }

    /// The next row's number of elements.
    ///
    /// # Errors
    /// [`NativeError::Corrupt`] at the end of the column, or if the offsets go backwards.
    pub fn next_length(&mut self) -> Result<usize, NativeError> {
        let end = u64::from_le_bytes(self.offsets.next_value()?);
        let length = end.checked_sub(self.previous).ok_or_else(exhausted)?;
        self.previous = end;
        usize::try_from(length).map_err(|_| exhausted())
    }
}

#[cfg(test)]
mod tests {
    use super::super::writer::{StringArrayWriter, put_string};
    use super::*;

    #[test]
    fn strings_are_read_back_as_they_were_written() {
        let long = vec![0xff_u8; 300];
        let values: [&[u8]; 4] = [b"", b"a\0b", &long, "späti".as_bytes()];
        let mut bytes = Vec::new();
        for value in values {
            put_string(&mut bytes, value);
        }
        let mut cursor = StringCursor::new(&bytes);
        for value in values {
            assert_eq!(cursor.next_value().unwrap(), value);
        }
        assert!(cursor.next_value().is_err());
    }

    #[test]
    fn encoded_runs_can_be_spliced_into_another_array() {
        let mut bytes = Vec::new();
        let mut writer = StringArrayWriter::new(&mut bytes, 2);
        writer.push_element(b"one");
        writer.push_element(b"two");
        writer.end_row();
        writer.end_row();
        let (mut lengths, elements) = ArrayCursor::new(&bytes, 2).unwrap();
        let mut strings = StringCursor::new(elements);
        let mut copy = Vec::new();
        let mut writer = StringArrayWriter::new(&mut copy, 2);
        for _ in 0..2 {
            let length = lengths.next_length().unwrap();
            writer.push_encoded(strings.next_encoded(length).unwrap(), length);
            writer.end_row();
        }
        assert_eq!(copy, bytes);
    }

    #[test]
    fn asking_for_more_rows_than_there_are_is_an_error() {
        assert!(FixedCursor::<8>::new(&[1, 2, 3]).next_value().is_err());
        assert!(NullableStringCursor::new(&[0], 2).is_err());
        assert!(ArrayCursor::new(&[0; 8], 2).is_err());
        assert!(StringCursor::new(&[0xff; 12]).next_value().is_err());
        assert!(StringCursor::new(&[5, b'a']).next_value().is_err());
    }
}
