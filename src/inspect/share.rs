//! The rows of a share of a month, as a condition.

use crate::clickhouse::quoting;
use crate::mapping::Source;
use crate::partition::ShareOfMonth;

/// The condition for the rows of a share of a source.
pub fn is_of_share(source: Source, share: ShareOfMonth) -> String {
    let alias = source.alias();
    let partition = share.partition.to_string();
    let of_partition = format!("{alias}._partition_id = {}", quoting::string(partition));
    if share.shard.is_none() {
        return of_partition;
    }
    let days = share.days();
    format!(
        "{of_partition} AND toDate({alias}.{}) BETWEEN toDate({}) AND toDate({})",
        source.time_column(),
        days.start(),
        days.end()
    )
}
