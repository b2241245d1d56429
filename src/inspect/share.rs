//! The SQL condition for the rows of a share of a month.

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
    let (days, month) = (share.days(), ShareOfMonth::whole(share.partition).days());
    let day = format!("toDate({alias}.{})", source.time_column());
    let mut conditions = vec![of_partition];
    // The first and the last shard are open-ended, so that every row of the partition has a shard.
    if days.start() != month.start() {
        conditions.push(format!("{day} >= toDate({})", days.start()));
    }
    if days.end() != month.end() {
        conditions.push(format!("{day} <= toDate({})", days.end()));
    }
    conditions.join(" AND ")
}
