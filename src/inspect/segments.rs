//! Divides a partition into segments.
//!
//! A segment is a half-open range of a source's sort key, a few hundred thousand rows long: the unit of work,
//! of parallelism, of progress and of the checkpoint. The first one begins before every key and the last one
//! ends after every key, so together they cover every row exactly once, even rows that arrive after the plan
//! was made. Each shard has its own segments, which cover the rows of its days; the calendar alone decides
//! which days these are.
//!
//! The plan reads the keys from the primary index (`mergeTreeIndex`), one row per granule, so it does not
//! scan the table.

use std::time::Duration;

use clickhouse::Row;
use indicatif::HumanCount;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::share::is_of_share;
use crate::cli::options::SegmentRows;
use crate::clickhouse::{Connection, RequestError, TableInfo, quoting};
use crate::mapping::Source;
use crate::memory::numbers::{in_memory, short};
use crate::partition::{Day, ShareOfMonth};
use crate::progress::words::plural;

/// The primary key that [`read_groups`] can read from the index.
const fn primary_key(source: Source) -> &'static str {
    match source {
        Source::Observations => "project_id, type, toDate(start_time)",
        Source::Traces => "project_id, toDate(timestamp)",
    }
}

/// The sort key column between project and day.
const fn type_column(source: Source) -> &'static str {
    match source {
        Source::Observations => "CAST(type, 'String')",
        Source::Traces => "''",
    }
}

/// Maximum rows of a granule (`index_granularity`).
const GRANULE_ROWS: u64 = 8_192;
/// Minimum granules per part and segment. Each segment also reads one or two granules per part that belong
/// to its neighbours (1.8 on average, measured); this minimum keeps the overhead below a quarter.
const GRANULES_PER_PART: u64 = 8;
/// A group at least this many times larger than a segment is split by id.
const SPLIT_FROM: u64 = 4;
/// Each piece of a split group scans the group's ids again, since the primary index does not contain them.
/// All splits together may scan a tenth of the partition.
const SPLIT_SCAN_DIVISOR: u64 = 10;
/// How long a query may take that reads one column of a group or of the partition.
const SCAN_TIMEOUT: Duration = Duration::from_secs(900);
/// Ids sampled per piece of a split.
const SAMPLES_PER_PIECE: u64 = 64;

/// Rows of one project, type and day: neighbours in the sort order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Row)]
pub struct Group {
    /// `project_id`
    pub project_id: ByteBuf,
    /// `type`; traces have none.
    pub observation_type: ByteBuf,
    /// `toDate(start_time)`, or `toDate(timestamp)`
    pub day: Day,
    /// Estimated rows, including versions that are not merged yet.
    pub rows: u64,
}

/// A place in the sort order: before all rows of a group, or inside one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Boundary {
    /// `project_id`
    pub project_id: ByteBuf,
    /// `type`; traces have none.
    pub observation_type: ByteBuf,
    /// `toDate(start_time)`, or `toDate(timestamp)`
    pub day: Day,
    /// Within a group, rows with this id or a greater one come after the boundary.
    pub id: Option<ByteBuf>,
}

impl Boundary {
    fn before(group: &Group) -> Self {
        Self {
            project_id: group.project_id.clone(),
            observation_type: group.observation_type.clone(),
            day: group.day,
            id: None,
        }
    }

    /// The sort key's columns with this boundary's values, as SQL. Drops trailing columns that have their
    /// least value: they exclude nothing, and ClickHouse may keep only a prefix of the key in its index.
    fn terms(&self, source: Source) -> Vec<(String, String)> {
        let mut terms = self.all_terms(source);
        if self.id.is_none() {
            let has_least_type = source == Source::Observations && self.observation_type.is_empty();
            let least = [has_least_type, self.day == 0];
            let meaningless = least.iter().rev().take_while(|&&least| least).count();
            terms.truncate(terms.len() - meaningless);
        }
        terms
    }

    fn all_terms(&self, source: Source) -> Vec<(String, String)> {
        let alias = source.alias();
        let mut terms = vec![(
            format!("{alias}.project_id"),
            quoting::string(&self.project_id),
        )];
        if source == Source::Observations {
            terms.push((
                format!("{alias}.type"),
                quoting::string(&self.observation_type),
            ));
        }
        terms.push((
            format!("toDate({alias}.{})", source.time_column()),
            format!("toDate({})", self.day),
        ));
        if let Some(id) = &self.id {
            terms.push((format!("{alias}.id"), quoting::string(id)));
        }
        terms
    }
}

/// A range of the sort order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Number of the segment, from 0.
    pub number: u32,
    /// The table that it is a range of.
    pub source: Source,
    /// Start, inclusive; `None` is before every row.
    pub from: Option<Boundary>,
    /// End, exclusive; `None` is after every row.
    pub to: Option<Boundary>,
    /// Estimated rows, including versions that are not merged yet.
    pub rows: u64,
}

impl Segment {
    /// The SQL condition for the segment's rows. Its form lets ClickHouse prune by the primary key: equality
    /// on the columns that both ends share, then nested `>` and `=` (comparing whole tuples does not prune).
    pub fn predicate(&self) -> String {
        let terms = |boundary: &Boundary| boundary.terms(self.source);
        let from = self.from.as_ref().map(terms).unwrap_or_default();
        let to = self.to.as_ref().map(terms).unwrap_or_default();
        // The last term is never shared, or the range would be empty.
        let shared = from
            .iter()
            .zip(&to)
            .take(from.len().min(to.len()).saturating_sub(1))
            .take_while(|(a, b)| a == b)
            .count();
        let mut conditions: Vec<String> = from[..shared]
            .iter()
            .map(|(column, value)| format!("{column} = {value}"))
            .collect();
        if !from.is_empty() {
            conditions.push(compare(&from[shared..], ">", ">="));
        }
        if !to.is_empty() {
            conditions.push(compare(&to[shared..], "<", "<"));
        }
        if conditions.is_empty() {
            return "1".to_owned();
        }
        conditions.join(" AND ")
    }

    /// A condition on a `project_id` column that holds for every project of the segment, if there is one.
    pub fn project_condition(&self, column: &str) -> Option<String> {
        let from = self
            .from
            .as_ref()
            .map(|b| format!("{column} >= {}", quoting::string(&b.project_id)));
        let to = self
            .to
            .as_ref()
            .map(|b| format!("{column} <= {}", quoting::string(&b.project_id)));
        match (from, to) {
            (Some(from), Some(to)) => Some(format!("{from} AND {to}")),
            (from, to) => from.or(to),
        }
    }
}

/// `a > x OR (a = x AND (b > y OR (b = y AND c >= z)))`
fn compare(terms: &[(String, String)], strict: &str, last: &str) -> String {
    let Some(((column, value), rest)) = terms.split_first() else {
        return "1".to_owned();
    };
    if rest.is_empty() {
        return format!("{column} {last} {value}");
    }
    format!(
        "({column} {strict} {value} OR ({column} = {value} AND {}))",
        compare(rest, strict, last)
    )
}

/// One partition of a source, to be planned.
#[derive(Debug, Clone, Copy)]
pub struct SourcePartition<'a> {
    /// Which source.
    pub source: Source,
    /// The table.
    pub table: &'a TableInfo,
    /// The partition, `YYYYMM`.
    pub id: &'a str,
    /// Its number of parts.
    pub parts: u64,
    /// The share of it to do.
    pub share: ShareOfMonth,
}

/// Plans these partitions one after the other: segments of about so many rows, or larger if a partition has so
/// many parts that short segments would read too much twice.
///
/// # Errors
/// [`RequestError`] if the server rejects a query or cannot be reached.
pub async fn make(
    connection: &Connection,
    partitions: &[SourcePartition<'_>],
    rows: SegmentRows,
) -> Result<Vec<Segment>, RequestError> {
    let mut segments = Vec::new();
    for &partition in partitions {
        let groups = read_groups(connection, partition).await?;
        let total = groups.iter().map(|group| group.rows).sum();
        let target = rows.of_partition(total, least_rows(partition));
        let mut pieces = Vec::new();
        for (group, count) in groups.iter().zip(pieces_per_group(&groups, target)) {
            let ids = if count > 1 {
                sample_ids(connection, partition, group, count).await?
            } else {
                Vec::new()
            };
            pieces.extend(split(group, ids));
        }
        let first_number = short(segments.len());
        segments.extend(pack(partition.source, &pieces, target, first_number));
    }
    Ok(segments)
}

/// Rows that a segment should have at least, because of the partition's parts.
fn least_rows(partition: SourcePartition<'_>) -> u64 {
    partition.parts * GRANULE_ROWS * GRANULES_PER_PART
}

/// A sentence for the operator if `segments` are larger than was asked for, because of the parts of these
/// partitions.
pub(crate) fn larger_than_asked(
    segments: &[Segment],
    partitions: &[SourcePartition<'_>],
    asked: SegmentRows,
) -> Option<String> {
    let larger = partitions.iter().filter_map(|&partition| {
        let of_source = segments.iter().filter(|it| it.source == partition.source);
        let rows: u64 = of_source.map(|segment| segment.rows).sum();
        let target = asked.of_partition(rows, least_rows(partition));
        // One segment may be all there is anyway.
        (target > asked.wanted && rows > asked.wanted).then(|| {
            let parts = plural(partition.parts, "part");
            format!(
                "{} for {} ({parts})",
                HumanCount(target),
                partition.source.table()
            )
        })
    });
    let larger: Vec<String> = larger.collect();
    (asked.is_asked && !larger.is_empty()).then(|| {
        format!(
            "--segment-rows raised from {} to {}: in so many parts, smaller segments would read many \
             rows twice",
            HumanCount(asked.wanted),
            larger.join(" and to ")
        )
    })
}

/// A sentence for the operator if a run that is resumed would have had other segments with what was asked for:
/// it keeps those that it has. One segment in ten more or less is no difference.
pub(crate) fn not_as_asked(
    segments: &[Segment],
    partitions: &[SourcePartition<'_>],
    asked: SegmentRows,
) -> Option<String> {
    let differ = partitions.iter().any(|&partition| {
        let of_source = segments.iter().filter(|it| it.source == partition.source);
        let rows: Vec<u64> = of_source.map(|segment| segment.rows).collect();
        let total: u64 = rows.iter().sum();
        let expected = total.div_ceil(asked.of_partition(total, least_rows(partition)));
        let there_are = rows.len() as u64;
        expected.abs_diff(there_are) * 10 > there_are
    });
    let largest = segments.iter().map(|segment| segment.rows).max();
    (asked.is_asked && differ).then(|| {
        format!(
            "--segment-rows {} has no effect on a resume: the run keeps the segments that it began with, of up \
             to {} rows",
            HumanCount(asked.wanted),
            HumanCount(largest.unwrap_or(0))
        )
    })
}

/// The groups of a partition in sort order, from the primary index; from a scan if the primary key is not
/// Langfuse's.
async fn read_groups(
    connection: &Connection,
    SourcePartition {
        source,
        table,
        id,
        share,
        ..
    }: SourcePartition<'_>,
) -> Result<Vec<Group>, RequestError> {
    let (observation_type, time) = (type_column(source), source.time_column());
    let grouped = "GROUP BY project_id, observation_type, day \
                   ORDER BY project_id, observation_type, day";
    let [rows, of_days] = rows_of_days(&format!("`toDate({time})`"), share);
    let from_index = format!(
        "SELECT project_id, {observation_type} AS observation_type, \
         `toDate({time})` AS day, {rows} AS rows \
         FROM mergeTreeIndex({}, {}) WHERE startsWith(part_name, {}){of_days} {grouped}",
        quoting::string(&table.database),
        quoting::string(&table.name),
        quoting::string(format!("{id}_")),
    );
    let alias = source.alias();
    let from_scan = format!(
        "SELECT project_id, {observation_type} AS observation_type, \
         toDate({time}) AS day, count() AS rows FROM {} AS {alias} WHERE {} {grouped}",
        table.qualified_name(),
        is_of_share(source, share),
    );
    if table.primary_key != primary_key(source) {
        return connection.rows_within(&from_scan, SCAN_TIMEOUT).await;
    }
    match connection.rows_within(&from_index, SCAN_TIMEOUT).await {
        // UNKNOWN_FUNCTION (servers before 24.2), ACCESS_DENIED
        Err(error) if matches!(error.code(), Some(46 | 497)) => {
            connection.rows_within(&from_scan, SCAN_TIMEOUT).await
        }
        groups => groups,
    }
}

/// SQL for a share's rows in some granules, and the condition for granules that have any. If the first
/// columns of the key are nearly unique, ClickHouse keeps 0 instead of the day in its index
/// (`primary_key_ratio_of_unique_prefix_values_to_skip_suffix_columns`); every shard may have rows in
/// such a granule.
fn rows_of_days(day: &str, share: ShareOfMonth) -> [String; 2] {
    if share.shard.is_none() {
        return ["sum(rows_in_granule)".to_owned(), String::new()];
    }
    let (days, month) = (share.days(), ShareOfMonth::whole(share.partition).days());
    let (own, all) = (days.len(), month.len());
    [
        format!(
            "toUInt64(sum(if({day} = toDate(0), intDiv(rows_in_granule * {own}, {all}), rows_in_granule)))"
        ),
        format!(
            " AND ({day} BETWEEN toDate({}) AND toDate({}) OR {day} = toDate(0))",
            days.start(),
            days.end()
        ),
    ]
}

/// The number of pieces to split each group into.
fn pieces_per_group(groups: &[Group], target: u64) -> Vec<u64> {
    let total: u64 = groups.iter().map(|group| group.rows).sum();
    let mut scan_budget = total / SPLIT_SCAN_DIVISOR;
    let mut pieces = vec![1; groups.len()];
    let mut largest_first: Vec<usize> = (0..groups.len()).collect();
    largest_first.sort_by_key(|&index| std::cmp::Reverse(groups[index].rows));
    for index in largest_first {
        let rows = groups[index].rows;
        if rows < target.saturating_mul(SPLIT_FROM) {
            break;
        }
        // One scan for the sample, and one for each piece but the first.
        let affordable = scan_budget / rows;
        let wanted = rows / (target * SPLIT_FROM / 2);
        let count = wanted.min(affordable);
        if count > 1 {
            pieces[index] = count;
            scan_budget -= count * rows;
        }
    }
    pieces
}

#[derive(Row, Deserialize)]
struct SampledIds {
    ids: Vec<ByteBuf>,
}

/// Ids that cut a group into `count` pieces of about equal size.
async fn sample_ids(
    connection: &Connection,
    SourcePartition {
        source, table, id, ..
    }: SourcePartition<'_>,
    group: &Group,
    count: u64,
) -> Result<Vec<ByteBuf>, RequestError> {
    let alias = source.alias();
    let conditions: Vec<String> = Boundary::before(group)
        .all_terms(source)
        .into_iter()
        .map(|(column, value)| format!("{column} = {value}"))
        .collect();
    let sql = format!(
        "SELECT arraySort(groupArraySample({}, 1)({alias}.id)) AS ids FROM {} AS {alias} \
         WHERE {alias}._partition_id = {} AND {}",
        count * SAMPLES_PER_PIECE,
        table.qualified_name(),
        quoting::string(id),
        conditions.join(" AND ")
    );
    let sample = connection
        .rows_within::<SampledIds>(&sql, SCAN_TIMEOUT)
        .await?;
    let ids = sample
        .into_iter()
        .next()
        .map_or_else(Vec::new, |row| row.ids);
    let mut cuts: Vec<ByteBuf> = (1..count)
        .filter_map(|piece| {
            ids.get((in_memory(piece) * ids.len()) / in_memory(count))
                .cloned()
        })
        .collect();
    cuts.dedup();
    // An empty id would cut before the group's first row.
    cuts.retain(|id| !id.is_empty());
    Ok(cuts)
}

/// A group or a piece of one: its start and its rows.
type Piece = (Boundary, u64);

fn split(group: &Group, cuts: Vec<ByteBuf>) -> Vec<Piece> {
    let rows = group.rows / (cuts.len() as u64 + 1);
    let mut pieces = vec![(Boundary::before(group), rows)];
    pieces.extend(cuts.into_iter().map(|id| {
        let boundary = Boundary {
            id: Some(id),
            ..Boundary::before(group)
        };
        (boundary, rows)
    }));
    pieces
}

/// Packs pieces, in their order, into segments of about `target` rows.
fn pack(source: Source, pieces: &[Piece], target: u64, first_number: u32) -> Vec<Segment> {
    let mut cuts: Vec<Option<Boundary>> = vec![None];
    let mut rows = vec![0_u64];
    for (boundary, piece_rows) in pieces {
        let current = rows.last().copied().unwrap_or(0);
        let overfull = current + piece_rows > target + target / 2;
        let is_enough = current >= target || (overfull && current >= target / 2);
        // The index ends with a mark that has a key and no rows.
        if is_enough && current > 0 && *piece_rows > 0 {
            cuts.push(Some(boundary.clone()));
            rows.push(0);
        }
        if let Some(last) = rows.last_mut() {
            *last += piece_rows;
        }
    }
    let ends = cuts.iter().skip(1).cloned().chain([None]);
    let ranges = cuts.iter().cloned().zip(ends).zip(rows);
    ranges
        .enumerate()
        .map(|(number, ((from, to), rows))| Segment {
            number: first_number + short(number),
            source,
            from,
            to,
            rows,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Budget, ByteSize};
    use proptest::prelude::*;

    fn group(project: &str, kind: &str, day: Day, rows: u64) -> Group {
        Group {
            project_id: ByteBuf::from(project),
            observation_type: ByteBuf::from(kind),
            day,
            rows,
        }
    }

    #[test]
    fn what_both_ends_share_becomes_equality() {
        let segment = Segment {
            number: 0,
            source: Source::Observations,
            from: Some(Boundary::before(&group("p", "SPAN", 3, 0))),
            to: Some(Boundary::before(&group("p", "SPAN", 5, 0))),
            rows: 0,
        };
        assert_eq!(
            segment.predicate(),
            "o.project_id = 'p' AND o.type = 'SPAN' AND toDate(o.start_time) >= toDate(3) \
             AND toDate(o.start_time) < toDate(5)"
        );
    }

    #[test]
    fn different_ends_become_nested_comparisons() {
        let segment = Segment {
            number: 0,
            source: Source::Observations,
            from: Some(Boundary::before(&group("p", "SPAN", 3, 0))),
            to: None,
            rows: 0,
        };
        assert_eq!(
            segment.predicate(),
            "(o.project_id > 'p' OR (o.project_id = 'p' AND (o.type > 'SPAN' OR \
             (o.type = 'SPAN' AND toDate(o.start_time) >= toDate(3)))))"
        );
    }

    #[test]
    fn least_values_at_the_end_of_a_boundary_are_left_out() {
        let segment = Segment {
            number: 0,
            source: Source::Observations,
            from: Some(Boundary::before(&group("a", "", 0, 0))),
            to: Some(Boundary::before(&group("b", "SPAN", 0, 0))),
            rows: 0,
        };
        assert_eq!(
            segment.predicate(),
            "o.project_id >= 'a' AND (o.project_id < 'b' OR (o.project_id = 'b' AND o.type < 'SPAN'))"
        );
    }

    #[test]
    fn segments_of_traces_have_no_type_in_their_conditions() {
        let segment = Segment {
            number: 0,
            source: Source::Traces,
            from: Some(Boundary::before(&group("a", "", 0, 0))),
            to: Some(Boundary::before(&group("b", "", 5, 0))),
            rows: 0,
        };
        assert_eq!(
            segment.predicate(),
            "t.project_id >= 'a' AND (t.project_id < 'b' OR \
             (t.project_id = 'b' AND toDate(t.timestamp) < toDate(5)))"
        );
    }

    #[test]
    fn the_last_mark_of_an_index_which_has_no_rows_makes_no_segment() {
        let groups = [group("p", "EVENT", 1, 6), group("p", "SPAN", 2, 0)];
        let pieces: Vec<Piece> = groups.iter().flat_map(|it| split(it, vec![])).collect();
        assert_eq!(pack(Source::Observations, &pieces, 6, 0).len(), 1);
    }

    #[test]
    fn a_segment_of_the_servers_engine_is_one_statement() {
        let days = 1..=30;
        for (group_rows, types) in [(34_000, 100), (100_000, 40), (7, 1)] {
            let groups: Vec<Group> = (0..types)
                .flat_map(|number| days.clone().map(move |day| (format!("{number:03}"), day)))
                .map(|(kind, day)| group("p", &kind, day, group_rows))
                .collect();
            let pieces: Vec<Piece> = groups.iter().flat_map(|it| split(it, vec![])).collect();
            let total = groups.iter().map(|group| group.rows).sum();
            for concurrency in 1..=4 {
                let budget = Budget::new(ByteSize(512 << 20), concurrency).unwrap();
                let rows = SegmentRows::of_server(&budget, concurrency);
                let target = rows.of_partition(total, 40 * GRANULE_ROWS * GRANULES_PER_PART);
                let largest = pack(Source::Observations, &pieces, target, 0);
                let largest = largest.iter().map(|segment| segment.rows).max();
                assert!(largest <= Some(budget.rows_per_statement()), "{largest:?}");
            }
        }
    }

    #[test]
    fn a_partition_without_rows_is_one_segment() {
        let segments = pack(Source::Observations, &[], 100, 0);
        assert_eq!(segments.len(), 1);
        assert_eq!(segments[0].predicate(), "1");
    }

    #[test]
    fn splitting_scans_at_most_a_tenth_of_the_partition() {
        let mut groups = vec![group("a", "SPAN", 1, 30_000)];
        groups.extend((2..60).map(|day| group("a", "SPAN", day, 20_000)));
        let pieces = pieces_per_group(&groups, 1_000);
        assert!(pieces[0] > 1);
        let total: u64 = groups.iter().map(|group| group.rows).sum();
        let scanned: u64 = groups
            .iter()
            .zip(&pieces)
            .filter(|(_, count)| **count > 1)
            .map(|(group, count)| group.rows * count)
            .sum();
        assert!(scanned <= total / SPLIT_SCAN_DIVISOR);
        assert_eq!(pieces_per_group(&groups[..1], 1_000), [1]);
    }

    proptest! {
        #[test]
        fn segments_follow_each_other_without_gap_or_overlap(
            sizes in proptest::collection::vec(1_u64..5_000, 0..200), target in 1_u64..3_000,
        ) {
            let pieces: Vec<Piece> = sizes
                .iter()
                .enumerate()
                .map(|(day, &rows)| (Boundary::before(&group("p", "t", Day::try_from(day).unwrap(), rows)), rows))
                .collect();
            let segments = pack(Source::Observations, &pieces, target, 0);
            prop_assert_eq!(&segments[0].from, &None);
            prop_assert_eq!(&segments[segments.len() - 1].to, &None);
            for pair in segments.windows(2) {
                prop_assert_eq!(&pair[0].to, &pair[1].from);
                prop_assert!(pair[0].from < pair[1].from);
            }
            let total: u64 = segments.iter().map(|segment| segment.rows).sum();
            prop_assert_eq!(total, sizes.iter().sum::<u64>());
            let largest = sizes.iter().copied().max().unwrap_or(0);
            for segment in &segments {
                prop_assert!(segment.rows <= target * 2 + largest);
            }
        }
    }
}
