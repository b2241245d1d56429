//! Builds columns and block headers.

/// Appends a LEB128 number.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let [lowest, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            return out.push(lowest);
        }
        out.push(lowest | 0x80);
    }
}

/// Appends a string: its length and its bytes.
pub fn put_string(out: &mut Vec<u8>, value: &[u8]) {
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// Appends a block's header. Exactly `columns` columns must follow.
pub fn put_block_header(out: &mut Vec<u8>, columns: usize, rows: usize) {
    put_varint(out, columns as u64);
    put_varint(out, rows as u64);
}

/// Appends a column's header. Its values must follow.
pub fn put_column_header(out: &mut Vec<u8>, name: &str, data_type: &str) {
    put_string(out, name.as_bytes());
    put_string(out, data_type.as_bytes());
}

/// Writes an `Array(String)` column row by row.
#[derive(Debug)]
pub struct StringArrayWriter<'a> {
    out: &'a mut Vec<u8>,
    /// Where to write the next row's end offset: offsets precede all elements.
    next_offset: usize,
    count: u64,
}

impl<'a> StringArrayWriter<'a> {
    /// A writer for exactly `rows` rows.
    pub fn new(out: &'a mut Vec<u8>, rows: usize) -> Self {
        let next_offset = out.len();
        out.resize(next_offset + rows * 8, 0);
        Self {
            out,
            next_offset,
            count: 0,
        }
    }

    /// Appends an element to the current row.
    pub fn push_element(&mut self, value: &[u8]) {
        put_string(self.out, value);
        self.count += 1;
    }

    /// Appends `count` encoded elements to the current row.
    pub fn push_encoded(&mut self, encoded: &[u8], count: usize) {
        self.out.extend_from_slice(encoded);
        self.count += count as u64;
    }

    /// Ends the current row.
    pub fn end_row(&mut self) {
        let offset = self.next_offset..self.next_offset + 8;
        self.out[offset].copy_from_slice(&self.count.to_le_bytes());
        self.next_offset += 8;
    }
}
