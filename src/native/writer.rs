//! Builds columns and block headers.

/// Appends a LEB128 number.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a string: its length and its bytes.
pub fn put_string(out: &mut Vec<u8>, value: &[u8]) {
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// Appends what a block begins with. As many columns must follow.
pub fn put_block_header(out: &mut Vec<u8>, columns: usize, rows: usize) {
    put_varint(out, columns as u64);
    put_varint(out, rows as u64);
}

/// Appends what a column begins with. Its values must follow.
pub fn put_column_header(out: &mut Vec<u8>, name: &str, data_type: &str) {
    put_string(out, name.as_bytes());
    put_string(out, data_type.as_bytes());
}

/// Builds the values of a `String` column.
#[derive(Debug, Default)]
pub struct StringBuilder {
    values: Vec<u8>,
}

impl StringBuilder {
    /// A builder with room for `bytes`.
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            values: Vec::with_capacity(bytes),
        }
    }

    /// Appends one row.
    pub fn push(&mut self, value: &[u8]) {
        put_string(&mut self.values, value);
    }

    /// The finished values.
    pub fn into_bytes(self) -> Vec<u8> {
        self.values
    }
}

/// Builds the values of an `Array(String)` column.
#[derive(Debug, Default)]
pub struct StringArrayBuilder {
    offsets: Vec<u8>,
    elements: Vec<u8>,
    count: u64,
}

impl StringArrayBuilder {
    /// A builder with room for `rows` rows and `bytes` of elements.
    pub fn with_capacity(rows: usize, bytes: usize) -> Self {
        Self {
            offsets: Vec::with_capacity(rows * 8),
            elements: Vec::with_capacity(bytes),
            count: 0,
        }
    }

    /// Appends an element to the current row.
    pub fn push_element(&mut self, value: &[u8]) {
        put_string(&mut self.elements, value);
        self.count += 1;
    }

    /// Appends `count` elements that are encoded already to the current row.
    pub fn push_encoded(&mut self, encoded: &[u8], count: usize) {
        self.elements.extend_from_slice(encoded);
        self.count += count as u64;
    }

    /// Ends the current row.
    pub fn end_row(&mut self) {
        self.offsets.extend_from_slice(&self.count.to_le_bytes());
    }

    /// Elements appended so far, over all rows.
    pub fn element_count(&self) -> u64 {
        self.count
    }

    /// The finished values.
    pub fn into_bytes(self) -> Vec<u8> {
        let mut values = self.offsets;
        values.extend_from_slice(&self.elements);
        values
    }

    /// The end offsets and the elements, for a map whose keys and values were
    /// built as two arrays of equal lengths.
    pub fn into_parts(self) -> (Vec<u8>, Vec<u8>) {
        (self.offsets, self.elements)
    }
}
