//! Events as Langfuse v4 writes them by itself while a backfill goes on, and what `events_full` must
//! then hold: see "The table is alive" in the description of the tables.
//!
//! Langfuse has three ways to write. The *staging* path, for older SDKs, writes a span with the
//! `event_ts` of its observation, and a root span `t-<trace>`. The *direct* path, for current ones,
//! writes real roots under their own ids, with the time of writing as `event_ts`, and says itself to
//! which item of an experiment a span belongs. For traces of experiments that came by the staging
//! path a job of its own writes them, without what they would have from their trace.
//!
//! All of them are made here from the table `history`, what a backfill would write of the whole
//! month: their values are right, and they can still be told from the backfill's.
use super::Database;
use super::differential::{Specification, add_experiments, ask, create_plain_table, execute};

/// A source that is not a backfill's.
pub const IS_LIVE: &str = "source NOT IN ('ingestion-api-backfill', 'otel-backfill')";

/// A root span that a backfill or the staging path makes of a trace.
pub const IS_TRACE_ROOT: &str = "span_id = concat('t-', trace_id)";

/// What tells one event from another.
pub const KEY: &str = "project_id, trace_id, span_id, start_time";

/// The columns that say to which item of an experiment a span belongs.
const EXPERIMENT_COLUMNS: &str = "experiment_id, experiment_name, experiment_metadata_names, \
     experiment_metadata_values, experiment_description, experiment_dataset_id, \
     experiment_item_id, experiment_item_version, experiment_item_expected_output, \
     experiment_item_metadata_names, experiment_item_metadata_values, \
     experiment_item_root_span_id";

/// Which item a span belongs to.
const ITEM: &str = "project_id, trace_id, experiment_id, experiment_item_id";

/// Which way Langfuse writes.
#[derive(Clone, Copy)]
pub enum Way {
    Staging,
    Direct,
}

/// A table like `events_full`, without its indexes and its key, that outlives a restart of the
/// server.
pub fn create_table(database: &Database, table: &str) {
    create_plain_table(database, table, "events_full");
}

/// Fills the new table `table` with all that a backfill of one month into an empty target writes,
/// with root spans and experiments.
pub fn fill_history(database: &Database, partition: &str, table: &str) {
    let made = format!("{table}_made");
    Specification::current().fill(database, partition, "events_full", &made);
    Specification::of_root_spans().add(database, partition, &made);
    add_experiments(database, &made);
    create_table(database, table);
    execute(
        database,
        &format!("INSERT INTO {table} SELECT * FROM {made}"),
    );
    for table in [&made, &format!("{made}_plain")] {
        execute(database, &format!("DROP TABLE {table}"));
    }
}

/// Adds to the table `live` what Langfuse writes of those spans of `history` for which `condition`
/// is true.
pub fn add(database: &Database, live: &str, way: Way, condition: &str) {
    let of = |kind: &str| {
        format!("if(source = 'otel-backfill', 'otel-{kind}', 'ingestion-api-{kind}') AS source")
    };
    let is_in_experiment = "(project_id, trace_id) IN \
         (SELECT project_id, trace_id FROM history WHERE experiment_id != '')";
    let statements = match way {
        Way::Staging => vec![
            format!(
                "SELECT * REPLACE ({}, 'python' AS ingestion_sdk_name, \
                     '2.60.3' AS ingestion_sdk_version, 'pk-lf-older' AS ingestion_api_key, \
                     1000 + length(input) AS event_bytes) \
                 FROM history WHERE ({condition}) AND NOT ({is_in_experiment})",
                of("dual-write")
            ),
            format!(
                "SELECT * REPLACE ({}, [] AS tags, false AS public, false AS bookmarked, \
                     '' AS trace_name, '' AS user_id, '' AS session_id) \
                 FROM history WHERE ({condition}) AND ({is_in_experiment})",
                of("dual-write-experiments")
            ),
        ],
        Way::Direct => vec![format!(
            "SELECT * REPLACE ( \
                 if(parent_span_id = concat('t-', trace_id), '', parent_span_id) \
                     AS parent_span_id, \
                 if(experiment_item_root_span_id = concat('t-', trace_id), root.span, \
                     experiment_item_root_span_id) AS experiment_item_root_span_id, \
                 'otel' AS source, now64(6) AS event_ts, 'javascript' AS ingestion_sdk_name, \
                 '5.1.0' AS ingestion_sdk_version, 'pk-lf-current' AS ingestion_api_key, \
                 2000 + length(input) AS event_bytes) \
             FROM (SELECT * FROM history WHERE ({condition}) AND NOT ({IS_TRACE_ROOT})) AS event \
             LEFT JOIN ( \
                 SELECT project_id, trace_id, min(span_id) AS span FROM history \
                 WHERE parent_span_id = concat('t-', trace_id) GROUP BY project_id, trace_id) AS root \
             USING (project_id, trace_id)"
        )],
    };
    for statement in statements {
        let columns = insertable_columns(database);
        execute(
            database,
            &format!("INSERT INTO {live} ({columns}) SELECT {columns} FROM ({statement})"),
        );
    }
}

/// Writes the rows of a table of live rows into `events_full`, as Langfuse does.
pub fn write(database: &Database, live: &str) {
    execute(
        database,
        &format!("INSERT INTO events_full SELECT * FROM {live}"),
    );
}

/// Fills the new table `wanted` with what a backfill must write beside the rows of `live`, and with
/// these. It leaves to Langfuse what is in `live` and as new, the root span of a trace that has a
/// live root, items that live spans carry, and what changed after `until`, an expression.
pub fn fill_wanted(database: &Database, live: &str, until: &str, wanted: &str) {
    create_table(database, wanted);
    let is_written = format!(
        "event_ts <= {until} AND NOT {} AND NOT {}",
        has_live_row(live),
        has_live_root(live)
    );
    let carried = format!(
        "experiment_id != '' AND ({ITEM}) IN (SELECT {ITEM} FROM {live} WHERE experiment_id != '')"
    );
    let columns = insertable_columns(database);
    let others = format!("* EXCEPT ({EXPERIMENT_COLUMNS})");
    for statement in [
        format!("({columns}) SELECT {columns} FROM {live}"),
        format!("({columns}) SELECT {columns} FROM history WHERE {is_written} AND NOT ({carried})"),
        format!("({others}) SELECT {others} FROM history WHERE {is_written} AND ({carried})"),
    ] {
        execute(database, &format!("INSERT INTO {wanted} {statement}"));
    }
}

/// Whether a span of `history` has a live row. All of them are as new as what they were made of.
pub fn has_live_row(live: &str) -> String {
    format!("(({KEY}) IN (SELECT {KEY} FROM {live}))")
}

/// Whether a span of `history` is the root span of a trace that has a live root under another id.
pub fn has_live_root(live: &str) -> String {
    format!(
        "({IS_TRACE_ROOT} AND (project_id, trace_id) IN (SELECT project_id, trace_id FROM {live} \
         WHERE parent_span_id = '' AND NOT ({IS_TRACE_ROOT})))"
    )
}

/// The columns of `events_full` that can be written.
pub fn insertable_columns(database: &Database) -> String {
    ask(
        database,
        "SELECT arrayStringConcat(groupArray(name), ', ') FROM system.columns \
         WHERE database = currentDatabase() AND table = 'events_full' \
             AND default_kind NOT IN ('MATERIALIZED', 'ALIAS')",
    )
}

/// What v4's lists, dashboards and experiments show of a table: it reads without FINAL.
pub fn as_v4_reads(database: &Database, table: &str) -> String {
    ask(
        database,
        &format!(
            "SELECT count() AS events, uniqExact(project_id, trace_id, span_id) AS spans, \
                 countIf(parent_span_id = '') AS roots, \
                 uniqExactIf((project_id, trace_id), parent_span_id = '') AS traces, \
                 sum(total_cost) AS cost, sum(usage_details['total']) AS tokens, \
                 countIf(experiment_id != '' AND span_id = experiment_item_root_span_id) AS items, \
                 countIf(public) AS public, countIf(bookmarked) AS bookmarked, \
                 sum(length(tags)) AS tags, uniqExact(session_id) AS sessions, \
                 sum(event_bytes) AS bytes, \
                 arraySort(groupUniqArray(ingestion_sdk_version)) AS versions \
             FROM {table} FORMAT Vertical"
        ),
    )
}
