//! Quotes identifiers and literals for SQL.

/// An identifier in back-quotes.
pub fn identifier(name: &str) -> String {
    let mut quoted = String::with_capacity(name.len() + 2);
    quoted.push('`');
    for c in name.chars() {
        if matches!(c, '`' | '\\') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted.push('`');
    quoted
}

/// `database.table`, quoted.
pub fn qualified(database: &str, table: &str) -> String {
    format!("{}.{}", identifier(database), identifier(table))
}

/// A string literal. Bytes that are not printable ASCII become `\xHH`, so ids of any bytes survive.
pub fn string(value: impl AsRef<[u8]>) -> String {
    let value = value.as_ref();
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('\'');
    for &byte in value {
        match byte {
            b'\'' | b'\\' => {
                quoted.push('\\');
                quoted.push(char::from(byte));
            }
            b' '..=b'~' => quoted.push(char::from(byte)),
            _ => quoted.push_str(&format!("\\x{byte:02X}")),
        }
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_backslashes_and_raw_bytes_are_escaped() {
        assert_eq!(string("it's \\ ok"), r"'it\'s \\ ok'");
        assert_eq!(string([0xff, 0, b'a']), r"'\xFF\x00a'");
        assert_eq!(identifier("odd`name"), r"`odd\`name`");
        assert_eq!(qualified("a", "b"), "`a`.`b`");
    }
}
