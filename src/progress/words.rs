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

/// Formats an estimated duration, rounded up.
pub(crate) fn about(seconds: f64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    let plural = |count: u64, unit: &str| match count {
        1 => format!("1 {unit}"),
        count => format!("{count} {unit}s"),
    };
    match whole(seconds.ceil()) {
        0 | 1 => "a second".to_owned(),
        seconds if seconds < 2 * MINUTE => plural(seconds, "second"),
        seconds if seconds < 2 * HOUR => plural(seconds.div_ceil(MINUTE), "minute"),
        seconds => {
            let minutes = seconds.div_ceil(MINUTE);
            format!(
                "{} {}",
                plural(minutes / 60, "hour"),
                plural(minutes % 60, "minute")
            )
        }
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
            (0.01, "a second"),
            (90.0, "90 seconds"),
            (125.0, "3 minutes"),
            (7_199.0, "120 minutes"),
            (7_260.0, "2 hours 1 minute"),
        ] {
            assert_eq!(about(seconds), words);
        }
    }
}
