//! Draws a chart as SVG paths: one or more stepped lines over time.

use std::fmt::Write;

use super::axis::{self, Axis};
use super::columns::{Column, Columns};
use super::fact::Fact;
use crate::progress::moment::Moment;

/// Maximum columns of a chart; a screen cannot show more.
const MOST_COLUMNS: usize = 160;
/// Size of the drawing area, which the browser stretches.
const WIDTH: f64 = 1_000.0;
const HEIGHT: f64 = 100.0;

/// A line over time.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    /// Name in the legend.
    pub name: String,
    /// Number of its colour.
    pub colour: usize,
    /// The `d` attribute of the line's path.
    pub path: String,
    /// The `d` attribute of the area below it.
    pub area: String,
}

/// The tooltip of a column.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Hint {
    pub x: String,
    pub width: String,
    pub words: String,
}

/// The point at which another process resumed the run.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mark {
    pub x: String,
    pub words: String,
}

/// A chart for the template.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chart {
    pub title: &'static str,
    /// Caption.
    pub about: &'static str,
    pub facts: Vec<Fact>,
    pub values: Axis,
    pub times: Axis,
    pub lines: Vec<Line>,
    pub hints: Vec<Hint>,
    pub marks: Vec<Mark>,
}

/// The value of a column, if it has one.
type Value<'a> = Box<dyn Fn(&Column) -> Option<f64> + 'a>;

/// The values of one line.
pub(super) struct Series<'a> {
    pub name: String,
    pub value: Value<'a>,
}

/// The definition of a chart.
pub(super) struct Drawing<'a> {
    pub title: &'static str,
    pub about: &'static str,
    pub facts: Vec<Fact>,
    pub series: Vec<Series<'a>>,
    /// The value axis has labels at round multiples of this.
    pub unit: f64,
    /// The value axis reaches at least this far.
    pub at_least: f64,
    /// Formats a value.
    pub words: fn(f64) -> String,
}

impl Drawing<'_> {
    /// Draws the measurements.
    pub(super) fn of(self, all: &Columns) -> Chart {
        let few = all.at_most(MOST_COLUMNS);
        let values = self.series.iter().map(|series| {
            let values = few.columns.iter().map(&series.value);
            values.collect::<Vec<_>>()
        });
        let values: Vec<Vec<Option<f64>>> = values.collect();
        let largest = values.iter().flatten().flatten().copied();
        let largest = largest.fold(self.at_least, f64::max);
        let value_axis = axis::of_values(largest, self.unit, self.words);
        let time_axis = axis::of_time(all.seconds());
        let x = |seconds: f64| seconds / time_axis.most * WIDTH;
        let y = |value: f64| HEIGHT - value / value_axis.most * HEIGHT;
        let lines = self.series.iter().zip(&values).enumerate();
        let lines = lines.map(|(colour, (series, values))| {
            let columns = few.columns.iter().zip(values);
            let steps = columns
                .map(|(column, value)| value.map(|value| (x(column.from), x(column.to), y(value))));
            let (path, area) = paths(steps);
            Line {
                name: series.name.clone(),
                colour,
                path,
                area,
            }
        });
        let lines = lines.collect();
        let hints = few.columns.iter().enumerate().map(|(index, column)| Hint {
            x: number(x(column.from)),
            width: number(x(column.to) - x(column.from)),
            words: self.hint(column, values.iter().map(|values| values[index])),
        });
        let marks = few.resumed.iter().map(|(seconds, began_at)| Mark {
            x: number(x(*seconds)),
            words: format!("resumed {}", of_clock(*began_at)),
        });
        Chart {
            title: self.title,
            about: self.about,
            hints: hints.collect(),
            marks: marks.collect(),
            facts: self.facts,
            lines,
            values: value_axis,
            times: time_axis,
        }
    }

    /// The tooltip: the time span and its values.
    fn hint(&self, column: &Column, values: impl Iterator<Item = Option<f64>>) -> String {
        let mut words = format!("{:.0} to {:.0} s", column.from, column.to);
        for (series, value) in self.series.iter().zip(values) {
            if let Some(value) = value {
                // Writing to a string does not fail.
                let _ = write!(words, "\n{}: {}", series.name, (self.words)(value));
            }
        }
        words
    }
}

/// Formats a time, given in seconds since 1970, to the minute.
pub(super) fn of_clock(seconds: u64) -> String {
    format!("{} UTC", Moment(seconds).to_minute())
}

/// Formats a coordinate with as many digits as are visible.
fn number(value: f64) -> String {
    format!("{value:.2}")
}

/// The paths of a stepped line and of the area below it. Both have gaps where steps are missing.
fn paths(steps: impl Iterator<Item = Option<(f64, f64, f64)>>) -> (String, String) {
    let (mut line, mut area) = (String::new(), String::new());
    let mut end: Option<f64> = None;
    let close = |area: &mut String, end: Option<f64>| {
        if let Some(end) = end {
            let _ = write!(area, "L{} {HEIGHT}Z", number(end));
        }
    };
    for step in steps {
        let Some((from, to, height)) = step else {
            close(&mut area, end.take());
            continue;
        };
        let (from, to, height) = (number(from), number(to), number(height));
        match end {
            None => {
                let _ = write!(line, "M{from} {height}");
                let _ = write!(area, "M{from} {HEIGHT}L{from} {height}");
            }
            Some(_) => {
                let _ = write!(line, "L{from} {height}");
                let _ = write!(area, "L{from} {height}");
            }
        }
        let _ = write!(line, "L{to} {height}");
        let _ = write!(area, "L{to} {height}");
        end = to.parse().ok();
    }
    close(&mut area, end);
    (line, area)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_gap_where_there_is_nothing() {
        let steps = [
            Some((0.0, 10.0, 50.0)),
            Some((10.0, 20.0, 0.0)),
            None,
            Some((30.0, 40.0, 100.0)),
        ];
        let (line, area) = paths(steps.into_iter());
        assert_eq!(
            line,
            "M0.00 50.00L10.00 50.00L10.00 0.00L20.00 0.00M30.00 100.00L40.00 100.00"
        );
        assert_eq!(area.matches('Z').count(), 2);
        assert!(area.starts_with("M0.00 100L0.00 50.00"), "{area}");
        assert!(area.contains("L20.00 100Z"), "{area}");
    }

    #[test]
    fn moments_are_told_to_the_minute() {
        assert_eq!(of_clock(1_717_200_061), "2024-06-01 00:01 UTC");
    }
}
