//! Finds blocks in a byte stream, and the columns in each block, without decoding values.
//!
//! Chunks may end anywhere. The walk stops at the end of the bytes and continues when more arrive;
//! restarting each block would cost 2.5 times the CPU time.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::error::NativeError;
use super::types::{DataType, Layout, shown};
use crate::memory::buffer_pool::{BufferPool, PooledBuffer};
use crate::memory::numbers::in_memory;

/// More columns than any supported table has; a larger number means garbage.
const MAX_COLUMNS: u64 = 4_096;
/// Longest column name or type, in bytes.
const MAX_NAME: u64 = 64 * 1024;
/// Initial buffer size; later blocks start with the size of the previous one.
const FIRST_CAPACITY: usize = 256 * 1024;

/// One column of a [`Block`].
#[derive(Debug, Clone)]
pub struct Column {
    /// Its name.
    pub name: Arc<str>,
    /// Its type.
    pub data_type: Arc<DataType>,
    /// Position of the values in [`Block::bytes`], unless spliced.
    pub values: Range<usize>,
    /// Start of the column in [`Block::bytes`], including its name and type.
    pub start: usize,
}

/// A complete block: its bytes, and where each column is.
#[derive(Debug, Clone)]
pub struct Block {
    /// Number of rows, at least 1.
    pub rows: usize,
    /// The columns, in byte order.
    pub columns: Vec<Column>,
    /// The whole block except spliced values.
    pub bytes: Bytes,
    /// Memory held in bytes, possibly more than `bytes` contains.
    pub held_bytes: usize,
    /// Columns whose values are outside `bytes`, in ascending order.
    pub spliced: Vec<Spliced>,
}

/// A column's values outside [`Block::bytes`].
#[derive(Debug, Clone)]
pub struct Spliced {
    /// Index of the column, which has no values in the block itself.
    pub column: usize,
    /// The values, in consecutive pieces.
    pub pieces: Vec<Bytes>,
}

impl Block {
    /// A column's values. Empty for a column that did not arrive, which readers then report as a
    /// damaged block.
    pub fn values(&self, index: usize) -> &[u8] {
        let column = self.columns.get(index);
        column.map_or(&[], |column| &self.bytes[column.values.clone()])
    }

    /// A column's complete values, copied if they are in several pieces.
    pub(super) fn whole_values(&self, index: usize) -> Bytes {
        let spliced = self.spliced.iter().find(|spliced| spliced.column == index);
        match spliced {
            Some(spliced) => spliced.pieces.concat().into(),
            None => self.bytes.slice(self.columns[index].values.clone()),
        }
    }

    /// The columns in `range` with names and types, ready to splice into another block without
    /// copying.
    pub fn pieces(&self, range: Range<usize>) -> Vec<Bytes> {
        if range.is_empty() {
            return Vec::new();
        }
        let mut start = self.columns[range.start].start;
        let mut pieces = Vec::new();
        let spliced = self.spliced.iter();
        for spliced in spliced.filter(|spliced| range.contains(&spliced.column)) {
            let values = self.columns[spliced.column].values.start;
            pieces.push(self.bytes.slice(start..values));
            pieces.extend(spliced.pieces.iter().cloned());
            start = values;
        }
        let end = self.columns[range.end - 1].values.end;
        pieces.push(self.bytes.slice(start..end));
        pieces
    }
}

/// Total memory held by `blocks`, in bytes.
pub(crate) fn held_bytes(blocks: &[Block]) -> usize {
    blocks.iter().map(|block| block.held_bytes).sum()
}

/// A node of a layout tree. Nodes refer to each other by index, so the walk can pause without
/// borrowing the tree.
#[derive(Debug, Clone)]
enum Node {
    Fixed(u64),
    String,
    Nullable(usize),
    Array(usize),
    Map(usize, usize),
    Tuple(Vec<usize>),
}

/// Work left on the current column; the last step runs first.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// `count` values of the layout at `node`.
    Values { node: usize, count: u64 },
    /// `count` strings.
    Strings { count: u64 },
    /// `count` null flags.
    NullFlags { count: u64 },
    /// `count` end offsets; the last one is the number of elements of `first` (and of `second`, for
    /// a map).
    Offsets {
        count: u64,
        previous: u64,
        first: usize,
        second: Option<usize>,
    },
}

/// A parsed column header. Headers rarely change within a stream, so the previous block's are
/// reused.
#[derive(Debug)]
struct KnownColumn {
    name: Arc<str>,
    type_name: String,
    data_type: Arc<DataType>,
    root: usize,
}

#[derive(Debug)]
enum State {
    BlockHeader,
    ColumnHeader,
    Values,
}

/// Splits a byte stream into [`Block`]s, skipping blocks without rows.
#[derive(Debug)]
pub struct BlockReader {
    max_block_bytes: usize,
    pool: BufferPool,
    buffer: PooledBuffer,
    /// Position of the walk, possibly beyond the bytes received.
    position: usize,
    state: State,
    rows: usize,
    column_count: usize,
    columns: Vec<Column>,
    steps: Vec<Step>,
    nodes: Vec<Node>,
    known: Vec<KnownColumn>,
    last_block_bytes: usize,
}

/// A step of the walk; `Ok(None)` means more bytes are needed.
type Walked<T> = Result<Option<T>, NativeError>;

impl BlockReader {
    /// A reader that rejects blocks larger than `max_block_bytes` and buffers the others in `pool`.
    pub fn new(max_block_bytes: usize, pool: &BufferPool) -> Self {
        Self {
            max_block_bytes,
            buffer: pool.take(),
            pool: pool.clone(),
            position: 0,
            state: State::BlockHeader,
            rows: 0,
            column_count: 0,
            columns: Vec::new(),
            steps: Vec::new(),
            nodes: Vec::new(),
            known: Vec::new(),
            last_block_bytes: 0,
        }
    }

    /// Appends the next bytes of the stream.
    pub fn push(&mut self, chunk: &[u8]) {
        let capacity = self.held_with(chunk.len());
        let length = self.buffer.len();
        self.buffer.reserve_exact(capacity - length);
        self.buffer.extend_from_slice(chunk);
    }

    /// Memory the unfinished block would hold after `additional` more bytes.
    pub fn held_with(&self, additional: usize) -> usize {
        let (length, capacity) = (self.buffer.len(), self.buffer.capacity());
        if length + additional <= capacity {
            return capacity;
        }
        // One allocation of the right size instead of several doublings: blocks of one stream are
        // of similar size.
        let expected = self.last_block_bytes.max(FIRST_CAPACITY);
        (expected + expected / 8)
            .max(length + additional)
            .max(length + length / 2)
    }

    /// The next complete block, or `None` if more bytes are needed.
    ///
    /// # Errors
    /// [`NativeError::Corrupt`], [`NativeError::TooLarge`] or [`NativeError::Type`]. Do not use the
    /// reader afterwards.
    pub fn next_block(&mut self) -> Result<Option<Block>, NativeError> {
        loop {
            let advanced = match self.state {
                State::BlockHeader => self.block_header()?,
                State::ColumnHeader => self.column_header()?,
                State::Values => self.walk_values()?,
            };
            self.check_size()?;
            if advanced.is_none() {
                return Ok(None);
            }
            if matches!(self.state, State::ColumnHeader) && self.columns.len() == self.column_count
            {
                let block = self.take_block();
                if block.rows > 0 {
                    return Ok(Some(block));
                }
            }
        }
    }

    /// Checks that the stream ended between blocks.
    ///
    /// # Errors
    /// [`NativeError::Truncated`] if it ended inside a block.
    pub fn finish(&self) -> Result<(), NativeError> {
        if self.buffer.is_empty() {
            Ok(())
        } else {
            Err(NativeError::Truncated {
                bytes: self.buffer.len(),
            })
        }
    }

    fn check_size(&self) -> Result<(), NativeError> {
        // The end of a column is known before its bytes arrive, so an oversized block is rejected
        // before it is buffered.
        if self.position > self.max_block_bytes {
            return Err(NativeError::TooLarge {
                rows: self.rows,
                limit: self.max_block_bytes,
            });
        }
        Ok(())
    }

    fn take_block(&mut self) -> Block {
        self.last_block_bytes = self.position;
        // Bytes of the next block move to a buffer of their own.
        let mut next = self.pool.take();
        next.extend_from_slice(&self.buffer[self.position..]);
        self.buffer.truncate(self.position);
        let buffer = std::mem::replace(&mut self.buffer, next);
        let held_bytes = buffer.capacity();
        let bytes = buffer.freeze();
        self.position = 0;
        self.state = State::BlockHeader;
        Block {
            rows: self.rows,
            columns: std::mem::take(&mut self.columns),
            bytes,
            held_bytes,
            spliced: Vec::new(),
        }
    }

    fn block_header(&mut self) -> Walked<()> {
        let Some((columns, after_columns)) = self.varint(self.position)? else {
            return Ok(None);
        };
        let Some((rows, after_rows)) = self.varint(after_columns)? else {
            return Ok(None);
        };
        if columns == 0 || columns > MAX_COLUMNS {
            return Err(NativeError::corrupt(format!(
                "it announces {columns} columns"
            )));
        }
        self.column_count = in_memory(columns);
        // Every row takes at least one byte in some column, so more rows than bytes is impossible.
        // This also keeps the products below in range.
        self.rows = usize::try_from(rows)
            .ok()
            .filter(|&rows| rows <= self.max_block_bytes)
            .ok_or_else(|| NativeError::TooLarge {
                rows: usize::try_from(rows).unwrap_or(usize::MAX),
                limit: self.max_block_bytes,
            })?;
        self.position = after_rows;
        self.columns.reserve(self.column_count);
        self.state = State::ColumnHeader;
        Ok(Some(()))
    }

    fn column_header(&mut self) -> Walked<()> {
        let start = self.position;
        let Some(name) = self.short_string(start)? else {
            return Ok(None);
        };
        let Some(type_name) = self.short_string(name.end)? else {
            return Ok(None);
        };
        let values_start = type_name.end;
        let index = self.columns.len();
        self.learn_column(index, name, type_name)?;
        let known = &self.known[index];
        self.columns.push(Column {
            name: Arc::clone(&known.name),
            data_type: Arc::clone(&known.data_type),
            values: values_start..values_start,
            start,
        });
        self.steps.push(Step::Values {
            node: known.root,
            count: self.rows as u64,
        });
        self.position = values_start;
        self.state = State::Values;
        Ok(Some(()))
    }

    fn learn_column(
        &mut self,
        index: usize,
        name: Range<usize>,
        type_name: Range<usize>,
    ) -> Result<(), NativeError> {
        let name = &self.buffer[name];
        let type_name = &self.buffer[type_name];
        if let Some(known) = self.known.get(index)
            && known.name.as_bytes() == name
            && known.type_name.as_bytes() == type_name
        {
            return Ok(());
        }
        let text = |bytes: &[u8]| {
            String::from_utf8(bytes.to_vec())
                .map_err(|_| NativeError::corrupt("a column name is not UTF-8"))
        };
        let (name, type_name) = (text(name)?, text(type_name)?);
        if index < self.known.len() {
            return Err(NativeError::corrupt(format!(
                "column {} is {} {}, but was {} {} in the previous block",
                index + 1,
                shown(&name),
                shown(&type_name),
                self.known[index].name,
                self.known[index].type_name
            )));
        }
        let type_error = |error| NativeError::Type {
            column: shown(&name),
            error,
        };
        let data_type = DataType::parse(&type_name).map_err(type_error)?;
        let layout = data_type.layout().map_err(type_error)?;
        let root = self.add_nodes(&layout);
        self.known.push(KnownColumn {
            name: Arc::from(name),
            type_name,
            data_type: Arc::new(data_type),
            root,
        });
        Ok(())
    }

    fn add_nodes(&mut self, layout: &Layout) -> usize {
        let node = match layout {
            Layout::Fixed(width) => Node::Fixed(*width as u64),
            Layout::String => Node::String,
            Layout::Nullable(inner) => Node::Nullable(self.add_nodes(inner)),
            Layout::Array(inner) => Node::Array(self.add_nodes(inner)),
            Layout::Map(key, value) => Node::Map(self.add_nodes(key), self.add_nodes(value)),
            Layout::Tuple(elements) => {
                Node::Tuple(elements.iter().map(|e| self.add_nodes(e)).collect())
            }
        };
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Walks the current column as far as the bytes reach.
    fn walk_values(&mut self) -> Walked<()> {
        while let Some(step) = self.steps.pop() {
            let finished = match step {
                Step::Values { node, count } => self.expand(node, count)?,
                Step::Strings { count } => self.walk_strings(count)?,
                Step::NullFlags { count } => self.walk_null_flags(count)?,
                Step::Offsets {
                    count,
                    previous,
                    first,
                    second,
                } => self.walk_offsets(count, previous, first, second)?,
            };
            if finished.is_none() {
                return Ok(None);
            }
        }
        if self.position > self.buffer.len() {
            return Ok(None);
        }
        let column = self.columns.len() - 1;
        self.columns[column].values.end = self.position;
        self.state = State::ColumnHeader;
        Ok(Some(()))
    }

    /// Replaces a layout node by its steps, pushed in reverse order.
    fn expand(&mut self, node: usize, count: u64) -> Walked<()> {
        match &self.nodes[node] {
            Node::Fixed(width) => {
                let bytes = self.checked_product(*width, count)?;
                self.position += bytes;
            }
            Node::String => self.steps.push(Step::Strings { count }),
            &Node::Nullable(inner) => {
                self.steps.push(Step::Values { node: inner, count });
                self.steps.push(Step::NullFlags { count });
            }
            &Node::Array(first) => self.push_offsets(count, first, None),
            &Node::Map(first, second) => self.push_offsets(count, first, Some(second)),
            Node::Tuple(elements) => {
                let steps = elements.iter().rev();
                self.steps
                    .extend(steps.map(|&node| Step::Values { node, count }));
            }
        }
        Ok(Some(()))
    }

    fn push_offsets(&mut self, count: u64, first: usize, second: Option<usize>) {
        self.steps.push(Step::Offsets {
            count,
            previous: 0,
            first,
            second,
        });
    }

    fn checked_product(&self, width: u64, count: u64) -> Result<usize, NativeError> {
        width
            .checked_mul(count)
            .and_then(|bytes| usize::try_from(bytes).ok())
            .filter(|&bytes| bytes <= self.max_block_bytes)
            .ok_or(NativeError::TooLarge {
                rows: self.rows,
                limit: self.max_block_bytes,
            })
    }

    fn walk_strings(&mut self, mut count: u64) -> Walked<()> {
        let mut position = self.position;
        while count > 0 {
            // Fast path: most lengths fit in one byte.
            let (length, after) = match self.buffer.get(position) {
                Some(&byte) if byte < 0x80 => (usize::from(byte), position + 1),
                _ => match self.varint(position)? {
                    Some((length, after)) => (self.checked_product(1, length)?, after),
                    None => {
                        self.position = position;
                        self.steps.push(Step::Strings { count });
                        return Ok(None);
                    }
                },
            };
            position = after + length;
            count -= 1;
        }
        self.position = position;
        Ok(Some(()))
    }

    fn walk_null_flags(&mut self, count: u64) -> Walked<()> {
        let available = self.buffer.get(self.position..).unwrap_or_default();
        let walked = available.len().min(self.checked_product(1, count)?);
        if available[..walked].iter().any(|&flag| flag > 1) {
            return Err(NativeError::corrupt("a null flag is neither 0 nor 1"));
        }
        self.position += walked;
        self.remaining(count - walked as u64, |count| Step::NullFlags { count })
    }

    fn walk_offsets(
        &mut self,
        count: u64,
        mut previous: u64,
        first: usize,
        second: Option<usize>,
    ) -> Walked<()> {
        let available = self.buffer.get(self.position..).unwrap_or_default();
        let walked = available
            .len()
            .min(self.checked_product(8, count)?)
            .checked_div(8)
            .unwrap_or(0);
        for offset in available[..walked * 8].as_chunks::<8>().0 {
            let offset = u64::from_le_bytes(*offset);
            if offset < previous {
                return Err(NativeError::corrupt("the offsets of an array go backwards"));
            }
            previous = offset;
        }
        self.position += walked * 8;
        let left = count - walked as u64;
        if left > 0 {
            return self.remaining(left, |count| Step::Offsets {
                count,
                previous,
                first,
                second,
            });
        }
        self.checked_product(1, previous)?;
        if let Some(second) = second {
            self.steps.push(Step::Values {
                node: second,
                count: previous,
            });
        }
        self.steps.push(Step::Values {
            node: first,
            count: previous,
        });
        Ok(Some(()))
    }

    /// Puts a step back with its remaining count, if any.
    fn remaining(&mut self, count: u64, step: impl FnOnce(u64) -> Step) -> Walked<()> {
        if count == 0 {
            return Ok(Some(()));
        }
        self.steps.push(step(count));
        Ok(None)
    }

    fn short_string(&self, position: usize) -> Walked<Range<usize>> {
        let Some((length, start)) = self.varint(position)? else {
            return Ok(None);
        };
        if length > MAX_NAME {
            return Err(NativeError::corrupt(format!(
                "a column name of {length} bytes"
            )));
        }
        let end = start + in_memory(length);
        Ok((end <= self.buffer.len()).then_some(start..end))
    }

    /// The LEB128 number at `position`, and where it ends.
    fn varint(&self, position: usize) -> Walked<(u64, usize)> {
        let mut value = 0_u64;
        let bytes = self.buffer.get(position..).unwrap_or_default();
        for (index, &byte) in bytes.iter().enumerate() {
            if index == 9 && byte > 1 {
                return Err(NativeError::corrupt("a number of more than 64 bits"));
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                return Ok(Some((value, position + index + 1)));
            }
        }
        Ok(None)
    }
}
