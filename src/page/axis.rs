//! Axes of charts, labelled with a few round numbers.

/// A label on an axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    /// Position, in percent of the axis.
    pub percent: f64,
    /// Text.
    pub label: String,
}

/// An axis that begins at zero.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    /// Value at its end.
    pub most: f64,
    pub ticks: Vec<Tick>,
}

/// Possible steps of a time axis, in seconds.
const TIMES: [f64; 22] = [
    1.0,
    2.0,
    5.0,
    10.0,
    15.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
    900.0,
    1_800.0,
    3_600.0,
    7_200.0,
    10_800.0,
    21_600.0,
    43_200.0,
    86_400.0,
    172_800.0,
    432_000.0,
    864_000.0,
    2_592_000.0,
];
/// Maximum labels on a value axis, not counting zero.
const VALUES: f64 = 4.0;
/// Maximum labels on a time axis.
const MOMENTS: f64 = 6.0;

/// A value axis up to at least `most`, with labels at round multiples of `unit`.
pub(super) fn of_values(most: f64, unit: f64, label: impl Fn(f64) -> String) -> Axis {
    let wanted = (most / unit / VALUES).max(f64::MIN_POSITIVE);
    let power = 10_f64.powf(wanted.log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0].map(|step| step * power);
    let step = steps.into_iter().find(|step| *step >= wanted * 0.999);
    let step = step.unwrap_or(10.0 * power) * unit;
    let most = step * (most / step * 0.999).ceil().max(1.0);
    ticks(most, step, label)
}

/// A time axis up to `most` seconds.
pub(super) fn of_time(most: f64) -> Axis {
    let step = TIMES.into_iter().find(|step| most / step <= MOMENTS);
    let step = step.unwrap_or(most / MOMENTS);
    let most = most.max(f64::MIN_POSITIVE);
    ticks(most, step, time)
}

fn ticks(most: f64, step: f64, label: impl Fn(f64) -> String) -> Axis {
    let values = (0..).map(|index| step * f64::from(index));
    let ticks = values.take_while(|value| *value <= most * 1.000_001);
    Axis {
        most,
        ticks: ticks
            .map(|value| Tick {
                percent: value / most * 100.0,
                label: label(value),
            })
            .collect(),
    }
}

/// A label of the time axis.
fn time(seconds: f64) -> String {
    let (unit, name) = match seconds {
        seconds if seconds < 60.0 => (1.0, "s"),
        seconds if seconds < 3_600.0 => (60.0, "min"),
        seconds if seconds < 86_400.0 => (3_600.0, "h"),
        _ => (86_400.0, "d"),
    };
    let number = format!("{:.1}", seconds / unit);
    let number = number.strip_suffix(".0").unwrap_or(&number);
    format!("{number} {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|tick| tick.label.as_str()).collect()
    }

    #[test]
    fn the_numbers_of_values_are_few_and_round_and_the_largest_value_is_below_the_last() {
        for (most, expected) in [
            (0.9, "0,0.25,0.5,0.75,1"),
            (93.0, "0,25,50,75,100"),
            (100.0, "0,25,50,75,100"),
            (61_000.0, "0,20000,40000,60000,80000"),
        ] {
            let axis = of_values(most, 1.0, |value| value.to_string());
            assert_eq!(labels(&axis).join(","), expected, "{most}");
            assert!(axis.most >= most);
        }
        let mebibytes = of_values(300.0 * 1_048_576.0, 1_048_576.0, |value| {
            (value / 1_048_576.0).to_string()
        });
        assert_eq!(labels(&mebibytes).join(","), "0,100,200,300");
        // Where nothing was measured there is an axis all the same.
        assert!(of_values(0.0, 1.0, |value| value.to_string()).most > 0.0);
    }

    #[test]
    fn the_numbers_of_time_are_those_of_a_clock() {
        assert_eq!(labels(&of_time(9.0)), ["0 s", "2 s", "4 s", "6 s", "8 s"]);
        let half_an_hour = of_time(1_850.0);
        assert_eq!(labels(&half_an_hour), ["0 s", "10 min", "20 min", "30 min"]);
        assert_eq!(labels(&of_time(100_000.0)).last(), Some(&"1 d"));
        let last = half_an_hour.ticks.last().map(|tick| tick.percent);
        assert_eq!(last, Some(1_800.0 / 1_850.0 * 100.0));
    }
}
