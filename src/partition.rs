//! A month, which is a partition of every table, and its days.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// Days since 1970-01-01, as ClickHouse's `Date` counts them.
pub type Day = u16;

/// The range of ClickHouse's Date type, in which days are counted.
const YEARS: std::ops::RangeInclusive<i32> = 1970..=2148;

/// A month, as ClickHouse names its partition: `202406`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Partition {
    year: i32,
    month: time::Month,
}

impl Partition {
    /// The first one that there can be.
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

    /// The days of the month, and so many before and after it.
    pub fn days_with_margin(self, margin: u16) -> std::ops::RangeInclusive<Day> {
        let (mut days, fallback) = (self.days(), 0);
        let first = days.next().unwrap_or(fallback);
        let last = days.last().unwrap_or(first);
        first.saturating_sub(margin)..=last.saturating_add(margin)
    }

    /// The month after this one, if there is one that can be written.
    pub fn next(self) -> Option<Self> {
        let month = self.month.next();
        let year = self.year + i32::from(month == time::Month::January);
        YEARS.contains(&year).then_some(Self { year, month })
    }

    /// The months from this one to `last`, both included.
    pub fn months_to(self, last: Self) -> impl Iterator<Item = Self> {
        std::iter::successors(Some(self), |month| month.next()).take_while(move |&m| m <= last)
    }

    /// The partition in which a day lies, as ClickHouse names it.
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
        let wrong =
            || format!("partition '{text}' is not a month: write it as YYYYMM, for example 202406");
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

/// Whether a directory of that name holds the state of a month's run, repair or dry run.
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
