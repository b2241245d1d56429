//! Lists of keys within statements: two hashes each, which the server computes for itself.

use crate::backfill::guard::row_hash::hashes;
use crate::trace_store::HashKey;

/// Keys of rows or traces.
#[derive(Debug, Clone, Default)]
pub(super) struct KeyList(Vec<HashKey>);

impl KeyList {
    /// Adds a key.
    pub(super) fn push(&mut self, key: HashKey) {
        self.0.push(key);
    }

    /// Adds keys.
    pub(super) fn extend(&mut self, keys: impl IntoIterator<Item = HashKey>) {
        self.0.extend(keys);
    }

    /// Number of keys.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The condition for rows whose key, given as SQL, is in the list.
    ///
    /// One literal holds all keys: the parser takes a hundred times as long for as many tuples
    /// (measured on 26.7).
    pub(super) fn contains(&self, [hash, check]: &[String; 2]) -> String {
        if self.is_empty() {
            return "0".to_owned();
        }
        let mut text = String::with_capacity(self.0.len() * 34);
        for key in &self.0 {
            let (hash, check) = hashes(key);
            text.push_str(match text.is_empty() {
                true => "(",
                false => ",(",
            });
            text.push_str(&format!("{hash},{check})"));
        }
        format!(
            "(CAST({hash}, 'UInt64'), CAST({check}, 'UInt32')) IN (SELECT tupleElement(key, 1), \
             tupleElement(key, 2) FROM (SELECT arrayJoin(CAST('[{text}]', \
             'Array(Tuple(UInt64, UInt32))')) AS key))"
        )
    }

    /// The condition for rows whose second hash is that of a key: a superset, from the span id alone.
    pub(super) fn has_check(&self, check: &str) -> String {
        if self.is_empty() {
            return "0".to_owned();
        }
        let mut text = String::with_capacity(self.0.len() * 11);
        for key in &self.0 {
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(&hashes(key).1.to_string());
        }
        format!("CAST({check}, 'UInt32') IN (SELECT arrayJoin(CAST('[{text}]', 'Array(UInt32)')))")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backfill::guard::row_hash::hash_key;

    #[test]
    fn a_key_is_listed_as_its_two_hashes() {
        let mut list = KeyList::default();
        let columns = ["h".to_owned(), "c".to_owned()];
        assert_eq!(list.contains(&columns), "0");
        list.push(hash_key(u64::MAX, 7));
        list.push(hash_key(1, u32::MAX));
        let condition = list.contains(&columns);
        assert!(
            condition.contains("'[(18446744073709551615,7),(1,4294967295)]'"),
            "{condition}"
        );
        assert!(list.has_check("c").contains("'[7,4294967295]'"));
    }
}
