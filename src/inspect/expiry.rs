//! Finds rows and values that the target's TTLs would delete as soon as they are written.

use std::fmt;

use clickhouse::Row;
use serde::Deserialize;

use super::{Count, Inspector};
use crate::clickhouse::{PartitionSize, TableInfo, quoting};
use crate::error::Error;

/// Columns of an event that have another name in `observations`.
const OTHER_NAMES: [(&str, &str); 1] = [("span_id", "id")];

impl Inspector {
    /// Warns if a TTL of one of these tables deletes rows of the month or empties a column; returns the
    /// first warning.
    pub(super) async fn look_for_expiry(
        &mut self,
        written: &[TableInfo],
        observations: &TableInfo,
        rows: &PartitionSize,
    ) -> Result<Option<String>, Error> {
        let mut told = None;
        for table in written {
            for ttl in delete_ttls(&table.engine_full) {
                let taken = self.rows_taken(&ttl, table, observations, rows).await;
                let may_take_roots = self.options.subject.root_spans && ttl.condition.is_some();
                let how_many = match taken {
                    Some(0) if !may_take_roots => continue,
                    Some(0) | None => "may delete events".to_owned(),
                    Some(taken) => format!(
                        "deletes the events of {taken} of {} rows of observations",
                        rows.rows
                    ),
                };
                let what = format!(
                    "the TTL of {}.{} ({ttl}) and partition {}: it {how_many} at the next merge; to keep \
                     them, use a longer TTL, or ALTER TABLE {} REMOVE TTL",
                    table.database,
                    table.name,
                    self.options.partition,
                    table.qualified_name(),
                );
                self.warn(what.clone())?;
                told.get_or_insert(what);
            }
            for (column, ttl) in self.column_ttls_of(table).await? {
                let taken = self.rows_taken(&ttl, table, observations, rows).await;
                let how_many = match taken {
                    Some(0) => continue,
                    None => "some rows".to_owned(),
                    Some(taken) => format!("{taken} of {} rows", rows.rows),
                };
                let what = format!(
                    "the TTL of column {column} of {}.{} ({ttl}) and partition {}: it deletes the values \
                     in the events of {how_many} of observations at the next merge; to keep them, use a \
                     longer TTL, or ALTER TABLE {} MODIFY COLUMN {column} REMOVE TTL",
                    table.database,
                    table.name,
                    self.options.partition,
                    table.qualified_name(),
                );
                self.warn(what.clone())?;
                told.get_or_insert(what);
            }
        }
        Ok(told)
    }

    async fn column_ttls_of(&self, table: &TableInfo) -> Result<Vec<(String, Ttl)>, Error> {
        let question = format!(
            "SELECT create_table_query AS statement FROM system.tables WHERE database = {} AND name = {}",
            quoting::string(&table.database),
            quoting::string(&table.name)
        );
        let made = self.ask(self.connection.rows::<Made>(&question)).await?;
        let made = made.first();
        Ok(made.map_or_else(Vec::new, |made| column_ttls(&made.statement)))
    }

    /// How many events of the month it deletes, if the observations can tell.
    async fn rows_taken(
        &self,
        ttl: &Ttl,
        table: &TableInfo,
        observations: &TableInfo,
        rows: &PartitionSize,
    ) -> Option<u64> {
        if rows.rows == 0 {
            return Some(0);
        }
        let columns: Vec<String> = table
            .columns
            .iter()
            .filter_map(|column| {
                let other = OTHER_NAMES.iter().find(|names| names.0 == column.name);
                let name = other.map_or(column.name.as_str(), |names| names.1);
                let source = observations.column(name)?;
                // With the type that it has in the table of events.
                let name = quoting::identifier(&source.name);
                let event = quoting::identifier(&column.name);
                Some(format!(
                    "CAST(o.{name}, {}) AS {event}",
                    quoting::string(&column.data_type)
                ))
            })
            .collect();
        let condition = match &ttl.condition {
            Some(condition) => format!(" AND ({condition})"),
            None => String::new(),
        };
        let query = format!(
            "SELECT count() AS count FROM (SELECT {} FROM {} AS o WHERE o._partition_id = {}) \
             WHERE ({}) <= now(){condition}",
            columns.join(", "),
            observations.qualified_name(),
            quoting::string(&rows.partition_id),
            ttl.expression,
        );
        // Fails if the TTL uses a column that observations lack.
        let counted = self.connection.rows::<Count>(&query).await.ok()?;
        counted.first().map(|row| row.count)
    }
}

/// The statement that creates a table.
#[derive(Row, Deserialize)]
struct Made {
    statement: String,
}

/// A TTL: the time from which rows or values are deleted, and the condition.
#[derive(Debug, PartialEq, Eq)]
struct Ttl {
    expression: String,
    condition: Option<String>,
}

impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.expression)?;
        match &self.condition {
            Some(condition) => write!(f, " WHERE {condition}"),
            None => Ok(()),
        }
    }
}

/// The TTLs of a table that delete rows, from `engine_full` in `system.tables`:
/// `MergeTree PARTITION BY … ORDER BY … TTL a, b DELETE WHERE c, d TO VOLUME 'e' SETTINGS …`.
fn delete_ttls(engine_full: &str) -> Vec<Ttl> {
    let Some(start) = find_word(engine_full, "TTL") else {
        return Vec::new();
    };
    let clause = &engine_full[start + "TTL".len()..];
    let end = find_word(clause, "SETTINGS").unwrap_or(clause.len());
    let elements = divided(&clause[..end]);
    elements.into_iter().filter_map(ttl).collect()
}

/// The columns of a table that have a TTL, from the statement that creates it:
/// `CREATE TABLE … (a T, b T CODEC(…) TTL c SETTINGS (…), INDEX …) ENGINE = …`.
fn column_ttls(create: &str) -> Vec<(String, Ttl)> {
    let Some((_, columns)) = create.split_once('(') else {
        return Vec::new();
    };
    let end = outside(columns).find(|&(_, c)| c == ')');
    let columns = end.map_or(columns, |(end, _)| &columns[..end]);
    let with_ttl = divided(columns).into_iter().filter_map(|element| {
        let ttl = &element[find_word(element, "TTL")? + "TTL".len()..];
        let ttl = &ttl[..find_word(ttl, "SETTINGS").unwrap_or(ttl.len())];
        let name = element.split_whitespace().next()?;
        let ttl = Ttl {
            expression: ttl.trim().to_owned(),
            condition: None,
        };
        Some((name.trim_matches('`').to_owned(), ttl))
    });
    with_ttl.collect()
}

fn ttl(element: &str) -> Option<Ttl> {
    for word in ["TO", "RECOMPRESS", "GROUP"] {
        // These move, compress or aggregate rows, but do not delete them.
        if find_word(element, word).is_some() {
            return None;
        }
    }
    let (before, condition) = match find_word(element, "WHERE") {
        Some(at) => (&element[..at], Some(&element[at + "WHERE".len()..])),
        None => (element, None),
    };
    let expression = match find_word(before, "DELETE") {
        Some(at) => &before[..at],
        None => before,
    };
    Some(Ttl {
        expression: expression.trim().to_owned(),
        condition: condition.map(|condition| condition.trim().to_owned()),
    })
}

/// The characters outside quotes and parentheses, with their positions.
fn outside(text: &str) -> impl Iterator<Item = (usize, char)> {
    let (mut depth, mut quote, mut is_escaped) = (0_usize, None, false);
    text.char_indices().filter(move |&(_, c)| {
        match quote {
            Some(_) if is_escaped => is_escaped = false,
            Some(_) if c == '\\' => is_escaped = true,
            Some(end) if c == end => quote = None,
            Some(_) => {}
            None => match c {
                '\'' | '"' | '`' => quote = Some(c),
                '(' | '[' => depth += 1,
                ')' | ']' if depth > 0 => depth -= 1,
                _ => return depth == 0,
            },
        }
        false
    })
}

fn find_word(text: &str, word: &str) -> Option<usize> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    outside(text).map(|(at, _)| at).find(|&at| {
        let (before, rest) = text.split_at(at);
        rest.strip_prefix(word)
            .is_some_and(|rest| !rest.starts_with(is_part) && !before.ends_with(is_part))
    })
}

fn divided(text: &str) -> Vec<&str> {
    let mut elements = Vec::new();
    let mut start = 0;
    for (at, c) in outside(text) {
        if c == ',' {
            elements.push(&text[start..at]);
            start = at + 1;
        }
    }
    elements.push(&text[start..]);
    elements
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_deletion_are_read_from_the_engine() {
        let of = |engine: &str| -> Vec<(String, Option<String>)> {
            let ttls = delete_ttls(engine).into_iter();
            ttls.map(|ttl| (ttl.expression, ttl.condition)).collect()
        };
        let days = |days: u32| format!("toDateTime(start_time) + toIntervalDay({days})");
        assert_eq!(
            of("MergeTree ORDER BY (a, TTL_b) SETTINGS index_granularity = 8192"),
            []
        );
        let one = format!("MergeTree ORDER BY a TTL {} SETTINGS x = 1", days(30));
        assert_eq!(of(&one), [(days(30), None)]);
        let many = format!(
            "ReplacingMergeTree(event_ts, is_deleted) PARTITION BY toYYYYMM(start_time) \
             ORDER BY a TTL {} TO VOLUME 'cold, TTL', {} DELETE WHERE name = ' SETTINGS, ', \
             {} RECOMPRESS CODEC(ZSTD(17)), {} DELETE SETTINGS index_granularity = 8192",
            days(1),
            days(2),
            days(3),
            days(4)
        );
        let expected = [
            (days(2), Some("name = ' SETTINGS, '".to_owned())),
            (days(4), None),
        ];
        assert_eq!(of(&many), expected);
    }

    #[test]
    fn the_times_at_which_columns_are_emptied_are_read_from_the_statement() {
        let of = |create: &str| -> Vec<(String, String)> {
            let ttls = column_ttls(create).into_iter();
            ttls.map(|(name, ttl)| (name, ttl.expression)).collect()
        };
        let create = "CREATE TABLE a.b (`c, TTL` Map(String, String) DEFAULT map('TTL', ')'), \
                      `input` String CODEC(ZSTD(3)) TTL toDateTime(start_time) + toIntervalDay(30), \
                      `d` String TTL e SETTINGS (min_compress_block_size = 1), \
                      INDEX f g TYPE text(tokenizer = 'TTL') GRANULARITY 1) \
                      ENGINE = MergeTree ORDER BY (a, b) TTL h, i DELETE SETTINGS j = 1, k = 2";
        let expected = [
            ("input", "toDateTime(start_time) + toIntervalDay(30)"),
            ("d", "e"),
        ];
        let expected = expected.map(|(name, ttl)| (name.to_owned(), ttl.to_owned()));
        assert_eq!(of(create), expected);
        assert_eq!(
            of("CREATE TABLE a.b (`c` String) ENGINE = MergeTree ORDER BY c TTL d"),
            []
        );
    }
}
