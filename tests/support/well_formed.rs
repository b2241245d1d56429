//! What is taken for a block is one.

use events_backfill::internals::{
    ArrayCursor, Block, FixedCursor, Layout, NullableStringCursor, StringCursor,
};

/// Walks every column of a block by its type, a second time and in another way than the reader.
/// Panics where values do not end exactly where the column does.
pub fn assert_well_formed(block: &Block) {
    assert!(block.rows > 0, "blocks without rows are left out");
    let mut end_of_last = 0;
    for (index, column) in block.columns.iter().enumerate() {
        assert!(column.start < column.values.start);
        assert!(column.start >= end_of_last);
        assert!(column.values.end <= block.bytes.len());
        end_of_last = column.values.end;
        let layout = column.data_type.layout().expect("it was walked");
        let mut rest = block.values(index);
        walk(&layout, &mut rest, block.rows);
        assert!(rest.is_empty(), "{} bytes too many", rest.len());
        read_with_cursors(&layout, block.values(index), block.rows);
        assert!(!block.pieces(index..index + 1).concat().is_empty());
    }
    assert_eq!(end_of_last, block.bytes.len());
}

fn walk(layout: &Layout, rest: &mut &[u8], rows: usize) {
    match layout {
        Layout::Fixed(width) => *rest = &rest[width * rows..],
        Layout::String => {
            let length = StringCursor::new(rest).next_encoded(rows).unwrap().len();
            *rest = &rest[length..];
        }
        Layout::Nullable(inner) => {
            assert!(rest[..rows].iter().all(|flag| *flag <= 1));
            *rest = &rest[rows..];
            walk(inner, rest, rows);
        }
        Layout::Array(inner) => {
            let elements = walk_lengths(rest, rows);
            walk(inner, rest, elements);
        }
        Layout::Map(key, value) => {
            let elements = walk_lengths(rest, rows);
            walk(key, rest, elements);
            walk(value, rest, elements);
        }
        Layout::Tuple(elements) => {
            for element in elements {
                walk(element, rest, rows);
            }
        }
    }
}

fn walk_lengths(rest: &mut &[u8], rows: usize) -> usize {
    let (mut lengths, elements) = ArrayCursor::new(rest, rows).unwrap();
    *rest = elements;
    (0..rows).map(|_| lengths.next_length().unwrap()).sum()
}

/// Reads a column as enriching does, where its type is one of those that enriching reads.
fn read_with_cursors(layout: &Layout, values: &[u8], rows: usize) {
    match layout {
        Layout::Fixed(8) => {
            let mut cursor = FixedCursor::<8>::new(values);
            assert!((0..rows).all(|_| cursor.next_value().is_ok()));
            assert!(cursor.next_value().is_err());
        }
        Layout::String => {
            let mut cursor = StringCursor::new(values);
            assert!((0..rows).all(|_| cursor.next_value().is_ok()));
            assert!(cursor.next_value().is_err());
        }
        Layout::Nullable(inner) if **inner == Layout::String => {
            let mut cursor = NullableStringCursor::new(values, rows).unwrap();
            assert!((0..rows).all(|_| cursor.next_value().is_ok()));
            assert!(cursor.next_value().is_err());
        }
        _ => {}
    }
}
