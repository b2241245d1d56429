-- The root spans that events_full must contain after a backfill of one partition with root
-- spans: one for each trace whose latest version lies in it, unless that is a deletion, or an
-- observation of the month is called as the root span would be. Written from the description of the
-- tables, independent of the Rust code; see expected.sql.
--
-- Query parameter: partition. One SELECT without a closing semicolon.
WITH
    latest_version AS
    (
        SELECT *
        FROM traces
        ORDER BY event_ts DESC
        LIMIT 1 BY project_id, id
    ),
    latest_root_observation AS
    (
        SELECT *
        FROM observations
        WHERE toYYYYMM(start_time) = toUInt32({partition:String}) AND id = concat('t-', trace_id)
        ORDER BY event_ts DESC
        LIMIT 1 BY project_id, trace_id
    )
SELECT
    project_id,
    id AS trace_id,
    concat('t-', id) AS span_id,
    '' AS parent_span_id,
    toDateTime64(timestamp, 6) AS start_time,
    CAST(NULL, 'Nullable(DateTime64(6))') AS end_time,
    name,
    'SPAN' AS type,
    environment,
    ifNull(trace.version, '') AS version,
    ifNull(trace.release, '') AS release,
    trace.name AS trace_name,
    ifNull(trace.user_id, '') AS user_id,
    ifNull(trace.session_id, '') AS session_id,
    tags,
    'DEFAULT' AS level,
    bookmarked,
    public,
    '{}' AS model_parameters,
    ifNull(trace.input, '') AS input,
    ifNull(trace.output, '') AS output,
    mapKeys(trace.metadata) AS metadata_names,
    mapValues(trace.metadata) AS metadata_values,
    if(has(mapKeys(trace.metadata), 'resourceAttributes'),
        'otel-backfill', 'ingestion-api-backfill') AS source,
    toDateTime64(trace.created_at, 6) AS created_at,
    toDateTime64(trace.updated_at, 6) AS updated_at,
    toDateTime64(trace.event_ts, 6) AS event_ts,
    CAST(0, 'UInt8') AS is_deleted
FROM latest_version AS trace
WHERE trace.is_deleted = 0 AND toYYYYMM(trace.timestamp) = toUInt32({partition:String})
    AND (trace.project_id, trace.id) NOT IN
        (SELECT project_id, trace_id FROM latest_root_observation WHERE is_deleted = 0)
