//! Selects partitions: named months, ranges, or all.

use std::collections::BTreeSet;

use crate::partition::Partition;

/// Separates the first and last month of an inclusive range.
const RANGE: &str = "..";

/// The requested partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// All existing ones.
    All,
    /// Some.
    Months {
        /// Months named individually: each must exist.
        named: BTreeSet<Partition>,
        /// First and last month of each range, in which months may be missing.
        ranges: BTreeSet<(Partition, Partition)>,
    },
}

/// The requested partitions, matched against the existing ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selected {
    /// Existing partitions, newest first and without duplicates.
    pub partitions: Vec<Partition>,
    /// Missing months of the ranges, newest first and without duplicates.
    pub without_rows: Vec<Partition>,
}

impl Selection {
    /// Parses `202406`, `202404,202406`, `202404..202406` and mixtures, in one or more texts.
    ///
    /// # Errors
    /// A message that quotes the invalid part.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let (mut named, mut ranges) = (BTreeSet::new(), BTreeSet::new());
        for item in texts.into_iter().flat_map(|text| text.split(',')) {
            match item.split_once(RANGE) {
                None => drop(named.insert(item.trim().parse()?)),
                Some((first, last)) => drop(ranges.insert(parse_range(first, last)?)),
            }
        }
        Ok(Self::Months { named, ranges })
    }

    /// The month, if exactly one was named and no range.
    pub fn single(&self) -> Option<Partition> {
        match self {
            Self::Months { named, ranges } if named.len() == 1 && ranges.is_empty() => {
                named.first().copied()
            }
            _ => None,
        }
    }

    /// Matches the request against the existing partitions.
    ///
    /// # Errors
    /// The named months that do not exist, oldest first.
    pub fn resolve(&self, there_are: &BTreeSet<Partition>) -> Result<Selected, Vec<Partition>> {
        let (named, ranges) = match self {
            Self::All => return Ok(Selected::new(there_are.clone(), BTreeSet::new())),
            Self::Months { named, ranges } => (named, ranges),
        };
        let missing: Vec<Partition> = named.difference(there_are).copied().collect();
        if !missing.is_empty() {
            return Err(missing);
        }
        let mut wanted = named.clone();
        for &(first, last) in ranges {
            wanted.extend(first.months_to(last));
        }
        let (partitions, without_rows) = wanted
            .into_iter()
            .partition(|month| there_are.contains(month));
        Ok(Selected::new(partitions, without_rows))
    }
}

impl Selected {
    fn new(partitions: BTreeSet<Partition>, without_rows: BTreeSet<Partition>) -> Self {
        Self {
            partitions: partitions.into_iter().rev().collect(),
            without_rows: without_rows.into_iter().rev().collect(),
        }
    }
}

fn parse_range(first: &str, last: &str) -> Result<(Partition, Partition), String> {
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() || last.is_empty() {
        return Err(format!(
            "the range '{first}{RANGE}{last}' has no {}: give both months, for example \
             202404{RANGE}202406, or use --all-partitions",
            if first.is_empty() { "beginning" } else { "end" }
        ));
    }
    let (first, last): (Partition, Partition) = (first.parse()?, last.parse()?);
    match first <= last {
        true => Ok((first, last)),
        false => Err(format!(
            "the range '{first}{RANGE}{last}' goes backwards: write {last}{RANGE}{first} (the \
             newest month runs first anyway)"
        )),
    }
}

/// Lists months in the given order, newest first, and writes consecutive ones as a range.
pub(crate) fn in_words(months: &[Partition]) -> String {
    let runs = months.chunk_by(|newer, older| older.next() == Some(*newer));
    let words: Vec<String> = runs
        .map(|run| match run {
            [newest, .., oldest] => format!("{oldest}{RANGE}{newest}"),
            _ => run.iter().map(Partition::to_string).collect(),
        })
        .collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn month(text: &str) -> Partition {
        text.parse().unwrap()
    }

    fn months(texts: &[&str]) -> Vec<Partition> {
        texts.iter().map(|text| month(text)).collect()
    }

    fn resolve(texts: &[&str], there_are: &[&str]) -> Result<Selected, Vec<Partition>> {
        let there_are = months(there_are).into_iter().collect();
        Selection::parse(texts.iter().copied())
            .unwrap()
            .resolve(&there_are)
    }

    #[test]
    fn months_lists_and_ranges_are_newest_first_and_each_once() {
        let there_are = ["202311", "202312", "202401", "202402", "202406"];
        for (texts, expected) in [
            (&["202406"][..], &["202406"][..]),
            (&["202311,202406"], &["202406", "202311"]),
            (&["202312..202402"], &["202402", "202401", "202312"]),
            (&["202401..202401"], &["202401"]),
            (
                &[" 202401 , 202311 .. 202312 ", "202312,202401"],
                &["202401", "202312", "202311"],
            ),
        ] {
            let selected = resolve(texts, &there_are).unwrap();
            assert_eq!(selected.partitions, months(expected), "{texts:?}");
            assert_eq!(selected.without_rows, [], "{texts:?}");
        }
        let all = months(&there_are).into_iter().collect();
        let selected = Selection::All.resolve(&all).unwrap();
        let newest_first = ["202406", "202402", "202401", "202312", "202311"];
        assert_eq!(selected.partitions, months(&newest_first));
    }

    #[test]
    fn a_range_may_have_gaps_and_a_named_month_must_be_there() {
        let selected = resolve(&["202312..202403", "202401"], &["202401", "202407"]).unwrap();
        assert_eq!(selected.partitions, months(&["202401"]));
        assert_eq!(
            selected.without_rows,
            months(&["202403", "202402", "202312"])
        );
        assert_eq!(in_words(&selected.without_rows), "202402..202403, 202312");
        let missing = resolve(&["202312..202403,202402", "202301"], &["202401"]);
        assert_eq!(missing, Err(months(&["202301", "202402"])));
    }

    #[test]
    fn what_is_not_understood_is_told_with_the_part_that_is_not() {
        for (text, words) in [
            ("", "''"),
            ("202406,", "''"),
            ("2024", "'2024'"),
            ("202406..202404", "202404..202406"),
            ("202404..", "no end"),
            ("..202404", "no beginning"),
            ("202404...202406", "'.202406'"),
            ("202404-202406", "'202404-202406'"),
            ("202404..202413", "no month 13"),
        ] {
            let error = Selection::parse([text]).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn only_a_month_that_is_named_alone_is_single() {
        let single = |text| Selection::parse([text]).unwrap().single();
        assert_eq!(single("202406"), Some(month("202406")));
        assert_eq!(single("202406,202406"), Some(month("202406")));
        assert_eq!(single("202406..202406"), None);
        assert_eq!(single("202405,202406"), None);
        assert_eq!(Selection::All.single(), None);
    }

    fn any_month() -> impl Strategy<Value = Partition> {
        (2019..2023, 1..=12).prop_map(|(year, month)| format!("{year}{month:02}").parse().unwrap())
    }

    proptest! {
        #[test]
        fn every_month_asked_for_is_either_worked_on_or_told(
            named in prop::collection::vec(any_month(), 1..4),
            ends in prop::collection::vec((any_month(), any_month()), 0..4),
            others in prop::collection::btree_set(any_month(), 0..12),
        ) {
            let ranges: Vec<_> = ends.iter().map(|&(a, b)| (a.min(b), a.max(b))).collect();
            let mut items: Vec<String> = named.iter().map(Partition::to_string).collect();
            items.extend(ranges.iter().map(|(first, last)| format!("{first}..{last}")));
            let there_are: BTreeSet<Partition> =
                others.into_iter().chain(named.iter().copied()).collect();
            let selected = Selection::parse([items.join(",").as_str()])
                .unwrap()
                .resolve(&there_are)
                .unwrap();
            for list in [&selected.partitions, &selected.without_rows] {
                prop_assert!(list.is_sorted_by(|newer, older| newer > older));
            }
            // Every month of these years, by the text that people compare.
            for year in 2019..2023 {
                for number in 1..=12 {
                    let text = format!("{year}{number:02}");
                    let wanted = items.iter().any(|item| match item.split_once("..") {
                        Some((first, last)) => (first..=last).contains(&text.as_str()),
                        None => *item == text,
                    });
                    let month = month(&text);
                    let is_there = there_are.contains(&month);
                    prop_assert_eq!(selected.partitions.contains(&month), wanted && is_there);
                    prop_assert_eq!(selected.without_rows.contains(&month), wanted && !is_there);
                }
            }
        }
    }
}
