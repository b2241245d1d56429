//! Formats numbers, times and summaries for people.

use std::fmt;
use std::time::Duration;

use indicatif::HumanCount;

use crate::memory::numbers::whole;

/// Formats a duration in seconds.
pub(crate) fn seconds(number: f64) -> String {
    format!("{number:.1} s")
}

/// Formats a time, given in microseconds since 1970, in UTC.
pub(crate) fn moment(microseconds: i64) -> String {
    use time::format_description::well_known::Rfc3339;
    time::OffsetDateTime::from_unix_timestamp(microseconds.div_euclid(1_000_000))
        .ok()
        .and_then(|moment| moment.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("microsecond {microseconds}"))
}

/// Formats a number of which some may not have been counted.
pub(crate) fn at_least(number: u64, not_all: bool) -> String {
    match not_all {
        true => format!("at least {}", count(number)),
        false => count(number),
    }
}

/// Formats a number with thousands separators.
pub(crate) fn count(number: u64) -> String {
    HumanCount(number).to_string()
}

/// Writes lines of name and value, with the names padded to `width` characters.
pub(crate) fn write_lines<Name: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    width: usize,
    lines: impl IntoIterator<Item = (Name, String)>,
) -> fmt::Result {
    let mut lines = lines.into_iter();
    lines.try_for_each(|(name, value)| {
        let mut name = name.to_string();
        if name.chars().count() >= width {
            name.push(' ');
        }
        writeln!(f, "{name:<width$}{value}")
    })
}

/// Formats a list, and only counts what is beyond `most` names: `a, b and 7 more`.
pub(crate) fn first_of(names: &[String], most: usize) -> String {
    match names.len().saturating_sub(most) {
        0 => names.join(", "),
        others => format!("{} and {others} more", names[..most].join(", ")),
    }
}

/// A table's name without its database, of `database.table`.
pub(crate) fn table_name(label: &str) -> &str {
    label.rsplit_once('.').map_or(label, |(_, name)| name)
}

/// Formats a table. The first `words` columns are left-aligned, the others right-aligned.
pub(crate) fn aligned<const COLUMNS: usize>(
    rows: &[[String; COLUMNS]],
    words: usize,
) -> Vec<String> {
    let widths: [usize; COLUMNS] = std::array::from_fn(|column| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0)
    });
    let line = |row: &[String; COLUMNS]| {
        let cells = row.iter().zip(widths).enumerate();
        let cells = cells.map(|(index, (cell, width))| match index < words {
            true => format!("{cell:<width$}"),
            false => format!("{cell:>width$}"),
        });
        let cells: Vec<String> = cells.collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// Formats a number of things: `1 row`, `2 rows`.
pub(crate) fn plural(count: u64, word: &str) -> String {
    match count {
        1 => format!("1 {word}"),
        count => format!("{} {word}s", HumanCount(count)),
    }
}

/// Formats an estimated duration, rounded up to about two digits: an estimate knows no more.
pub(crate) fn about(seconds: f64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    if seconds < 1.0 {
        return "less than a second".to_owned();
    }
    let seconds = whole(seconds.ceil());
    let in_units = |unit: u64, name: &str| plural(seconds.div_ceil(unit), name);
    match seconds {
        ..100 => in_units(1, "second"),
        _ if seconds < 100 * MINUTE => in_units(MINUTE, "minute"),
        _ if seconds <= 10 * HOUR => {
            let minutes = seconds.div_ceil(10 * MINUTE) * 10;
            match (plural(minutes / 60, "hour"), minutes % 60) {
                (hours, 0) => hours,
                (hours, minutes) => format!("{hours} {}", plural(minutes, "minute")),
            }
        }
        _ if seconds <= 2 * DAY => in_units(HOUR, "hour"),
        _ => {
            let hours = seconds.div_ceil(HOUR);
            match (plural(hours / 24, "day"), hours % 24) {
                (days, 0) => days,
                (days, hours) => format!("{days} {}", plural(hours, "hour")),
            }
        }
    }
}

/// The same with *about* before it, where that makes sense.
pub(crate) fn in_about(seconds: f64) -> String {
    match seconds < 1.0 {
        true => about(seconds),
        false => format!("about {}", about(seconds)),
    }
}

/// Formats a duration briefly: `12s`, `3m`, `2h 05m`, `4d 02h`.
pub(crate) fn short(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, minutes) => format!("{hours}h {:02}m", minutes % 60),
        (days, hours, _) => format!("{days}d {:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_list_the_first_are_named_and_the_others_counted() {
        let names = ["a", "b", "c", "d"].map(str::to_owned);
        assert_eq!(first_of(&names, 4), "a, b, c, d");
        assert_eq!(first_of(&names, 2), "a, b and 2 more");
        assert_eq!(first_of(&[], 2), "");
    }

    #[test]
    fn a_long_name_keeps_its_distance_from_its_value() {
        struct Lines;
        impl fmt::Display for Lines {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let lines = ["ab", "abcd", "abcde"].map(|name| (name, "7".to_owned()));
                write_lines(f, 4, lines)
            }
        }
        assert_eq!(Lines.to_string(), "ab  7\nabcd 7\nabcde 7\n");
    }

    #[test]
    fn times_are_told_as_exactly_as_they_are_known() {
        for (seconds, words) in [
            (0.0, "less than a second"),
            (0.99, "less than a second"),
            (1.0, "1 second"),
            (1.2, "2 seconds"),
            (90.0, "90 seconds"),
            (100.0, "2 minutes"),
            (125.0, "3 minutes"),
            (5_999.0, "100 minutes"),
            (6_001.0, "1 hour 50 minutes"),
            (7_199.0, "2 hours"),
            (7_260.0, "2 hours 10 minutes"),
            (36_001.0, "11 hours"),
            (172_800.0, "48 hours"),
            (172_801.0, "2 days 1 hour"),
            (259_200.0, "3 days"),
        ] {
            assert_eq!(about(seconds), words);
        }
        assert_eq!(in_about(0.4), "less than a second");
        assert_eq!(in_about(2.5), "about 3 seconds");
    }
}
