-- What events_full must contain after a backfill of one partition: the
-- specification written a second time, in SQL, straight from the description of
-- the tables and independent of the Rust code. The differential test compares
-- the two column by column.
--
-- Query parameter: partition, for example 202406. One SELECT without a closing
-- semicolon, so that it can stand alone, after INSERT INTO events_full (columns), or
-- in a subquery. Expects the default join_use_nulls = 0: without a trace, the
-- columns of `latest_trace` read as empty strings, arrays and maps, and false.
WITH
    -- The version that counts is the one with the latest event_ts, on whatever
    -- day of whatever month it lies. FINAL would not do: it keeps one version
    -- per day. Whether that version is deleted is asked afterwards, because an
    -- older version must not come back when the latest one is a deletion.
    latest_version AS
    (
        SELECT
            project_id, id, name, user_id, session_id, release, version,
            tags, public, bookmarked, metadata, is_deleted
        FROM traces
        ORDER BY event_ts DESC
        LIMIT 1 BY project_id, id
    ),
    latest_trace AS
    (
        SELECT *
        FROM latest_version
        WHERE is_deleted = 0
    ),
    -- The observation's pairs first, then those pairs of the trace whose key
    -- the observation lacks. Both in the order in which the maps hold them.
    CAST(mapKeys(observation.metadata), 'Array(String)') AS own_names,
    CAST(mapKeys(latest_trace.metadata), 'Array(String)') AS trace_names,
    arrayConcat(
        own_names,
        arrayFilter(name -> NOT has(own_names, name), trace_names)
    ) AS all_names,
    arrayConcat(
        mapValues(observation.metadata),
        arrayFilter(
            (value, name) -> NOT has(own_names, name),
            mapValues(latest_trace.metadata),
            trace_names)
    ) AS all_values,
    ifNull(observation.parent_observation_id, '') AS parent
SELECT
    observation.project_id AS project_id,
    observation.trace_id AS trace_id,
    observation.id AS span_id,
    multiIf(
        observation.id = concat('t-', observation.trace_id), '',
        parent != '', parent,
        concat('t-', observation.trace_id)) AS parent_span_id,
    toDateTime64(observation.start_time, 6) AS start_time,
    toDateTime64(observation.end_time, 6) AS end_time,
    observation.name AS name,
    observation.type AS type,
    observation.environment AS environment,
    -- Null means "not set". An empty version is a value and stays.
    coalesce(observation.version, latest_trace.version, '') AS version,
    ifNull(latest_trace.release, '') AS release,
    latest_trace.name AS trace_name,
    ifNull(latest_trace.user_id, '') AS user_id,
    ifNull(latest_trace.session_id, '') AS session_id,
    latest_trace.tags AS tags,
    observation.level AS level,
    ifNull(observation.status_message, '') AS status_message,
    toDateTime64(observation.completion_start_time, 6) AS completion_start_time,
    CAST(latest_trace.bookmarked AND parent = '', 'Bool') AS bookmarked,
    latest_trace.public AS public,
    ifNull(observation.prompt_id, '') AS prompt_id,
    ifNull(observation.prompt_name, '') AS prompt_name,
    observation.prompt_version AS prompt_version,
    ifNull(observation.internal_model_id, '') AS model_id,
    ifNull(observation.provided_model_name, '') AS provided_model_name,
    ifNull(observation.model_parameters, '{}') AS model_parameters,
    observation.provided_usage_details AS provided_usage_details,
    observation.usage_details AS usage_details,
    observation.provided_cost_details AS provided_cost_details,
    observation.cost_details AS cost_details,
    observation.usage_pricing_tier_id AS usage_pricing_tier_id,
    observation.usage_pricing_tier_name AS usage_pricing_tier_name,
    observation.tool_definitions AS tool_definitions,
    observation.tool_calls AS tool_calls,
    observation.tool_call_names AS tool_call_names,
    ifNull(observation.input, '') AS input,
    ifNull(observation.output, '') AS output,
    all_names AS metadata_names,
    all_values AS metadata_values,
    CAST(
        if(has(own_names, 'resourceAttributes'), 'otel-backfill', 'ingestion-api-backfill'),
        'LowCardinality(String)') AS source,
    toDateTime64(observation.created_at, 6) AS created_at,
    toDateTime64(observation.updated_at, 6) AS updated_at,
    toDateTime64(observation.event_ts, 6) AS event_ts,
    CAST(0, 'UInt8') AS is_deleted
FROM
(
    -- The version that counts: the latest, of whatever type, on whatever day of
    -- whatever month. FINAL would not do: it keeps one for each type and day.
    -- Whether it is deleted, and in which month it lies, is asked afterwards:
    -- an older version must not come back in its place. (Equal times do not
    -- occur in the tests but by accident; then the later day counts.)
    SELECT *
    FROM
    (
        SELECT *
        FROM observations
        ORDER BY event_ts DESC, start_time DESC
        LIMIT 1 BY project_id, trace_id, id
    )
    WHERE is_deleted = 0 AND toYYYYMM(start_time) = toUInt32({partition:String})
) AS observation
LEFT JOIN latest_trace
    ON latest_trace.project_id = observation.project_id AND latest_trace.id = observation.trace_id
