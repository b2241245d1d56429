//! The daily time window for a run.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::Time;
use jiff::tz::TimeZone;

/// A daily time range in a time zone.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Window {
    from: Time,
    until: Time,
    zone: TimeZone,
}

impl Window {
    /// Whether it is open at `moment`.
    pub(super) fn is_open(&self, moment: Timestamp) -> bool {
        let time = moment.to_zoned_datetime(self.zone.clone()).time();
        match self.from < self.until {
            true => (self.from..self.until).contains(&time),
            // The range crosses midnight.
            false => time >= self.from || time < self.until,
        }
    }
}

impl FromStr for Window {
    type Err = String;

    /// Parses `22:00-06:00` (local time zone) or `22:00-06:00 Europe/Berlin`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' is not a time window: use, for example, 22:00-06:00 or '22:00-06:00 \
                 Europe/Berlin'"
            )
        };
        let (times, zone) = match text.trim().split_once(char::is_whitespace) {
            Some((times, zone)) => (times, Some(zone.trim())),
            None => (text.trim(), None),
        };
        let (from, until) = times.split_once('-').ok_or_else(wrong)?;
        let time = |text: &str| Time::strptime("%H:%M", text).map_err(|_| wrong());
        let (from, until) = (time(from)?, time(until)?);
        if from == until {
            return Err(format!("'{text}' starts and ends at the same time"));
        }
        let zone = match zone {
            None => TimeZone::try_system().map_err(|_| {
                format!(
                    "the system's time zone is unknown: name one, for example '{times} \
                     Europe/Berlin'"
                )
            })?,
            Some(name) => TimeZone::get(name).map_err(|_| {
                format!("'{name}' is not a time zone: use, for example, Europe/Berlin")
            })?,
        };
        Ok(Self { from, until, zone })
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zone = self.zone.iana_name().unwrap_or("local time");
        let (from, until) = (self.from.strftime("%H:%M"), self.until.strftime("%H:%M"));
        write!(f, "{from}-{until} {zone}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_open(window: &str, moment: &str) -> bool {
        window
            .parse::<Window>()
            .unwrap()
            .is_open(moment.parse().unwrap())
    }

    #[test]
    fn it_may_go_over_midnight() {
        for (time, expected) in [
            ("21:59:59", false),
            ("22:00:00", true),
            ("23:59:59", true),
            ("00:00:00", true),
            ("05:59:59", true),
            ("06:00:00", false),
        ] {
            let moment = format!("2026-11-28T{time}Z");
            assert_eq!(is_open("22:00-06:00 UTC", &moment), expected, "{time}");
            assert_eq!(is_open("06:00-22:00 UTC", &moment), !expected, "{time}");
        }
    }

    #[test]
    fn it_is_a_time_of_day_in_its_zone_in_summer_and_in_winter() {
        let window = "22:00-06:00 Europe/Berlin";
        assert!(is_open(window, "2026-07-01T20:00:00Z"));
        assert!(!is_open(window, "2026-12-01T20:00:00Z"));
        assert!(is_open(window, "2026-12-01T21:00:00Z"));
    }

    #[test]
    fn what_is_no_window_is_told() {
        for text in [
            "",
            "22:00",
            "22:00-22:00",
            "25:00-06:00",
            "22-6",
            "22:00-06:00 Nowhere/City",
        ] {
            assert!(text.parse::<Window>().is_err(), "{text}");
        }
        let window: Window = "22:00-06:00 Europe/Berlin".parse().unwrap();
        assert_eq!(window.to_string(), "22:00-06:00 Europe/Berlin");
    }
}
