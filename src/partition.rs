//! Months (each is a partition of every table), their days, and the share of a month that one run does.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// Days since 1970-01-01, as ClickHouse's `Date` counts them.
pub type Day = u16;

/// The years of ClickHouse's `Date` type.
const YEARS: std::ops::RangeInclusive<i32> = 1970..=2148;

/// A month, as ClickHouse names its partition: `202406`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Partition {
    year: i32,
    month: time::Month,
}

impl Partition {
    /// The earliest month.
    pub const FIRST: Self = Self {
        year: *YEARS.start(),
        month: time::Month::January,
    };

    /// The days of the month, as days since 1970-01-01.
    pub fn days(self) -> impl Iterator<Item = Day> {
        let epoch = time::Date::from_ordinal_date(1970, 1).map_or(0, time::Date::to_julian_day);
        let first = time::Date::from_calendar_date(self.year, self.month, 1)
            .map_or(epoch, time::Date::to_julian_day);
        let length = i32::from(self.month.length(self.year));
        (first..first + length).filter_map(move |day| u16::try_from(day - epoch).ok())
    }

    /// The days of the month, and `margin` days before and after it.
    pub fn days_with_margin(self, margin: u16) -> RangeInclusive<Day> {
        let (mut days, fallback) = (self.days(), 0);
        let first = days.next().unwrap_or(fallback);
        let last = days.last().unwrap_or(first);
        with_margin(&(first..=last), margin)
    }

    /// The month after this one, or `None` past the last year.
    pub fn next(self) -> Option<Self> {
        let month = self.month.next();
        let year = self.year + i32::from(month == time::Month::January);
        YEARS.contains(&year).then_some(Self { year, month })
    }

    /// The months from this one through `last`.
    pub fn months_to(self, last: Self) -> impl Iterator<Item = Self> {
        std::iter::successors(Some(self), |month| month.next()).take_while(move |&m| m <= last)
    }

    /// The partition of a day, as ClickHouse names it.
    pub fn id_of(day: Day) -> String {
        let epoch = time::Date::from_ordinal_date(1970, 1).map_or(0, time::Date::to_julian_day);
        match time::Date::from_julian_day(epoch + i32::from(day)) {
            Ok(date) => format!("{:04}{:02}", date.year(), u8::from(date.month())),
            Err(_) => String::new(),
        }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}{:02}", self.year, u8::from(self.month))
    }
}

impl FromStr for Partition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || match month_meant_by(text) {
            Some(month) => {
                format!("partition '{text}' is not a month: write it as YYYYMM, that is {month}")
            }
            None => {
                format!("partition '{text}' is not a month: write it as YYYYMM, for example 202406")
            }
        };
        if text.len() != 6 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let year: i32 = text[..4].parse().map_err(|_| wrong())?;
        let month: u8 = text[4..].parse().map_err(|_| wrong())?;
        let month = time::Month::try_from(month).map_err(|_| {
            format!("partition '{text}' is not a month: there is no month {month:02}")
        })?;
        if !YEARS.contains(&year) {
            return Err(format!(
                "partition '{text}' is out of range: years go from {} to {}",
                YEARS.start(),
                YEARS.end()
            ));
        }
        Ok(Self { year, month })
    }
}

/// The month, as `YYYYMM`, that a text most likely names: `202406`, `2024-06`, `2024/06/01`.
pub(crate) fn month_meant_by(text: &str) -> Option<String> {
    let is_date = |c: char| c.is_ascii_digit() || matches!(c, '-' | '/' | '.' | '_');
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    if !text.chars().all(is_date) || !matches!(digits.len(), 6 | 8) {
        return None;
    }
    let month = digits[..6].to_owned();
    month.parse::<Partition>().is_ok().then_some(month)
}

fn with_margin(days: &RangeInclusive<Day>, margin: u16) -> RangeInclusive<Day> {
    days.start().saturating_sub(margin)..=days.end().saturating_add(margin)
}

/// One of several processes that divide the days of every month among them: `3/8` is the third of
/// eight. The calendar alone decides which days a shard gets, not the tables or their merges, so the
/// processes need not know of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shard {
    /// From 1.
    number: u16,
    /// How many there are.
    of: u16,
}

impl Shard {
    /// The days of the shortest month: a shard without a day would have nothing to do.
    pub const MOST: u16 = 28;

    /// Shard `number`, counted from 1, of `of`.
    ///
    /// # Errors
    /// A sentence if there is no such shard.
    pub fn new(number: u16, of: u16) -> Result<Self, String> {
        if !(1..=Self::MOST).contains(&of) {
            return Err(format!(
                "use 1 to {} shards, not {of}: each takes whole days of a month",
                Self::MOST
            ));
        }
        match (1..=of).contains(&number) {
            true => Ok(Self { number, of }),
            false => Err(format!(
                "there is no shard {number}: shards are numbered from 1 to {of}"
            )),
        }
    }

    /// All of `of` shards.
    pub fn all(of: u16) -> impl Iterator<Item = Self> {
        (1..=of).map(move |number| Self { number, of })
    }

    /// How many shards there are.
    pub fn of(self) -> u16 {
        self.of
    }

    /// The shard's part of `days`: each day belongs to exactly one shard.
    fn days(self, days: &RangeInclusive<Day>) -> RangeInclusive<Day> {
        let (first, count) = (
            u32::from(*days.start()),
            u32::from(days.end() - days.start()) + 1,
        );
        let begin = |number: u32| first + number * count / u32::from(self.of);
        let (begin, end) = (
            begin(u32::from(self.number) - 1),
            begin(u32::from(self.number)),
        );
        let day = |day| Day::try_from(day).unwrap_or(Day::MAX);
        day(begin)..=day(end - 1)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a shard: write NUMBER/OF, for example 3/8");
        let (number, of) = text.split_once('/').ok_or_else(wrong)?;
        let parse = |text: &str| text.trim().parse().map_err(|_| wrong());
        Self::new(parse(number)?, parse(of)?)
    }
}

/// The part of a month that one run does: all of it, or the days of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShareOfMonth {
    /// The month.
    pub partition: Partition,
    /// The shard; `None` is the whole month.
    pub shard: Option<Shard>,
}

impl ShareOfMonth {
    /// All of a month.
    pub fn whole(partition: Partition) -> Self {
        Self {
            partition,
            shard: None,
        }
    }

    /// Its days, as days since 1970-01-01.
    pub fn days(self) -> RangeInclusive<Day> {
        let month = self.partition.days_with_margin(0);
        self.shard.map_or(month.clone(), |shard| shard.days(&month))
    }

    /// Its days, and `margin` days before and after them.
    pub fn days_with_margin(self, margin: u16) -> RangeInclusive<Day> {
        with_margin(&self.days(), margin)
    }

    /// Whether the two have days in common.
    pub fn overlaps(self, other: Self) -> bool {
        let (own, others) = (self.days(), other.days());
        own.start() <= others.end() && others.start() <= own.end()
    }

    /// The name of its directory and its queries: `202406`, or `202406-3of8`.
    pub fn name(self) -> String {
        match self.shard {
            Some(Shard { number, of }) => format!("{}-{number}of{of}", self.partition),
            None => self.partition.to_string(),
        }
    }

    /// The share with this name, if it is one.
    pub fn of_name(name: &str) -> Option<Self> {
        let Some((partition, shard)) = name.split_once('-') else {
            return name.parse().ok().map(Self::whole);
        };
        let (number, of) = shard.split_once("of")?;
        let share = Self {
            partition: partition.parse().ok()?,
            shard: Some(Shard::new(number.parse().ok()?, of.parse().ok()?).ok()?),
        };
        // Only the exact spelling counts: not 3of08, for example.
        (share.name() == name).then_some(share)
    }
}

/// `202406`, or `202406 3/8`.
impl fmt::Display for ShareOfMonth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shard {
            Some(shard) => write!(f, "{} {shard}", self.partition),
            None => self.partition.fmt(f),
        }
    }
}

/// Whether a directory with this name holds the state of a month's run, repair or dry run.
pub(crate) fn is_of_month(name: &str) -> bool {
    name.get(..6)
        .is_some_and(|month| month.parse::<u32>().is_ok())
}

/// Seconds since 1970.
pub(crate) fn seconds_since_1970() -> u64 {
    milliseconds_since_1970() / 1_000
}

/// Milliseconds since 1970.
pub(crate) fn milliseconds_since_1970() -> u64 {
    let since_1970 = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn month(text: &str) -> Partition {
        text.parse().unwrap()
    }

    #[test]
    fn the_shards_of_a_month_have_each_of_its_days_once() {
        for month in ["202401", "202402", "202302", "202406"].map(month) {
            for of in 1..=Shard::MOST {
                let shards = (1..=of).map(|number| ShareOfMonth {
                    partition: month,
                    shard: Some(Shard::new(number, of).unwrap()),
                });
                let days: Vec<Day> = shards.clone().flat_map(ShareOfMonth::days).collect();
                assert_eq!(days, month.days().collect::<Vec<_>>(), "{month} {of}");
                let lengths: Vec<usize> = shards.clone().map(|shard| shard.days().len()).collect();
                let (least, most) = (lengths.iter().min(), lengths.iter().max());
                assert!(most.unwrap() - least.unwrap() <= 1, "{lengths:?}");
                assert!(
                    shards
                        .clone()
                        .all(|shard| shard.overlaps(ShareOfMonth::whole(month)))
                );
                assert!(
                    shards
                        .clone()
                        .zip(shards.skip(1))
                        .all(|(one, next)| !one.overlaps(next))
                );
            }
        }
    }

    #[test]
    fn a_shard_is_written_as_its_number_of_how_many() {
        for text in ["1/1", "3/8", "28/28"] {
            assert_eq!(text.parse::<Shard>().unwrap().to_string(), text);
        }
        for (text, word) in [
            ("0/8", "from 1 to 8"),
            ("9/8", "from 1 to 8"),
            ("1/0", "1 to 28"),
            ("1/29", "1 to 28"),
            ("3", "3/8"),
            ("", "3/8"),
            ("3of8", "3/8"),
            ("-1/8", "3/8"),
            ("1/8/8", "3/8"),
        ] {
            let error = text.parse::<Shard>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_share_is_found_again_by_its_name(number in 1_u16..=28, of in 1_u16..=28, whole: bool) {
            let shard = Shard::new(number, of).ok().filter(|_| !whole);
            let share = ShareOfMonth { partition: month("202406"), shard };
            prop_assert_eq!(ShareOfMonth::of_name(&share.name()), Some(share));
        }

        #[test]
        fn nothing_else_is_taken_for_the_name_of_a_share(name in "202406(-[0-9of]{0,6})?") {
            if let Some(share) = ShareOfMonth::of_name(&name) {
                prop_assert_eq!(share.name(), name);
            }
        }
    }

    #[test]
    fn a_month_has_its_days() {
        let days = |text: &str| {
            text.parse::<Partition>()
                .unwrap()
                .days()
                .collect::<Vec<_>>()
        };
        assert_eq!(days("197001"), (0..31).collect::<Vec<_>>());
        assert_eq!(days("202402").len(), 29);
        assert_eq!(days("202406")[0], 19_875);
        let margin = "202406".parse::<Partition>().unwrap().days_with_margin(2);
        assert_eq!(margin, 19_873..=19_906);
        let ids = [19_874, 19_875, 19_904, 19_905].map(Partition::id_of);
        assert_eq!(ids, ["202405", "202406", "202406", "202407"]);
        assert_eq!(
            "197001".parse::<Partition>().unwrap().days_with_margin(3),
            0..=33
        );
    }
}
