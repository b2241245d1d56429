//! Sums of hashes of both sides, and where they differ.

use std::collections::BTreeMap;

use serde_bytes::ByteBuf;

use super::rows::Sums;
use super::scope::Class;
use crate::partition::Day;

/// Project, day, class and slice.
pub(super) type SumsKey = (ByteBuf, Day, Class, u64);
/// The sums of one side.
pub(super) type SumsByKey = BTreeMap<SumsKey, Sums>;
/// Expected and actual sums.
pub(super) type BothSums = (SumsByKey, SumsByKey);

pub(super) fn key_of(sums: &Sums) -> SumsKey {
    (
        sums.project.clone(),
        sums.day,
        Class::of(sums.class),
        sums.slice,
    )
}

/// The keys that differ, with the larger side's rows.
pub(super) fn different_sums(expected: &SumsByKey, actual: &SumsByKey) -> BTreeMap<SumsKey, u64> {
    let mut different = BTreeMap::new();
    for (key, sums) in expected.iter().chain(actual) {
        let is_compared = matches!(key.2, Class::Ordinary | Class::Root);
        if is_compared && !are_equal(expected.get(key), actual.get(key)) {
            let rows = different.entry(key.clone()).or_insert(0);
            *rows = sums.row_count.max(*rows);
        }
    }
    different
}

fn are_equal(expected: Option<&Sums>, actual: Option<&Sums>) -> bool {
    let numbers = |sums: &Sums| {
        [
            sums.row_count,
            sums.own_sum,
            sums.own_xor,
            sums.trace_sum,
            sums.trace_xor,
        ]
    };
    expected.map(numbers) == actual.map(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(slice: u64, row_count: u64, trace_xor: u64) -> (SumsKey, Sums) {
        let sums = Sums {
            project: ByteBuf::from("p"),
            day: 1,
            class: 0,
            slice,
            row_count,
            own_sum: 1,
            own_xor: 2,
            trace_sum: 3,
            trace_xor,
            without_trace: slice,
            of_traces: slice,
        };
        (key_of(&sums), sums)
    }

    #[test]
    fn sums_differ_in_any_number_and_where_a_side_has_none() {
        let expected = BTreeMap::from([sums(0, 5, 4), sums(1, 5, 4), sums(2, 7, 4)]);
        let actual = BTreeMap::from([sums(0, 5, 4), sums(1, 5, 9), sums(3, 8, 4)]);
        let different = different_sums(&expected, &actual);
        let seen: Vec<(u64, u64)> = different.iter().map(|(key, rows)| (key.3, *rows)).collect();
        assert_eq!(seen, [(1, 5), (2, 7), (3, 8)]);
    }
}
