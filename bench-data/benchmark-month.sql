-- One month for the benchmark: traces with light attributes, and observations
-- with a payload of a given size. Expects the tables of schema.sql, empty.
--
-- Query parameters, all always given:
--   month         first day of the month, of 30 days, for example 2024-06-01
--   traces        how many traces, at least 30
--   observations  how many observations, at least 30
--   payload       average bytes of an observation's input and output together
--
-- Everything derives from row numbers and hashes: no files, no random numbers,
-- no clock. The observations do not depend on the number of traces in anything
-- but their trace_id, so one can measure the same observations with few traces
-- and with many.
--
-- Rows come in the order of days, as they do in a real month. An observation
-- belongs to any of the traces of its day. In detail:
--   * one observation in fifty has a trace that does not exist;
--   * one observation in fifty, and one trace in twenty, has a second version
--     that lies in another part;
--   * one observation in eight is a root.
--
-- The texts are passages from a corpus of 16 MB, made of 1,024 words of which
-- some are much more frequent than others, as in any language. A passage comes
-- again after so many rows that compression does not see it, so a text
-- compresses like a text: LZ4 to about a half, ZSTD to about a third.


-- ---------------------------------------------------------------------------
-- Traces
-- ---------------------------------------------------------------------------

INSERT INTO traces
(
    id, timestamp, name, user_id, metadata, release, version, project_id, environment,
    public, bookmarked, tags, input, output, session_id, created_at, updated_at, event_ts, is_deleted
)
WITH
    toDateTime64({month:Date}, 3) AS month_start,
    intDiv({traces:UInt64}, 30) AS traces_per_day,
    (n, purpose) -> cityHash64(n, purpose) AS hash
SELECT
    lower(hex(MD5(concat('trace ', toString(number))))) AS id,
    addMilliseconds(
        month_start,
        least(intDiv(number, traces_per_day), 29) * 86400000 + hash(number, 'time') % 86400000) AS timestamp,
    ['chat', 'summarise-document', 'search', 'classify-ticket', 'nightly-evaluation'][1 + hash(number, 'name') % 5] AS name,
    if(hash(number, 'user') % 4 = 0, NULL, concat('user-', toString(hash(number, 'user') % 20000))) AS user_id,
    if(number % 2 = 0, map(), map('customer_tier', ['free', 'pro', 'enterprise'][1 + hash(number, 'tier') % 3])) AS metadata,
    if(number % 3 = 0, NULL, concat('2024.', toString(hash(number, 'release') % 12))) AS release,
    if(number % 4 = 0, concat('v', toString(hash(number, 'version') % 9)), NULL) AS version,
    concat('clw8q2k9v000', ['1support', '2search', '3billing'][
        multiIf(hash(number, 'project') % 10 < 7, 1, hash(number, 'project') % 10 < 9, 2, 3)]) AS project_id,
    'default' AS environment,
    hash(number, 'public') % 16 = 0 AS public,
    hash(number, 'bookmarked') % 16 = 0 AS bookmarked,
    if(number % 2 = 0, [], [['alpha', 'beta', 'customer:acme', 'experiment', 'slow'][1 + hash(number, 'tag') % 5]]) AS tags,
    NULL AS input,
    NULL AS output,
    if(number % 3 = 1, concat('session-', toString(hash(number, 'session') % 50000)), NULL) AS session_id,
    timestamp AS created_at,
    addSeconds(timestamp, 1) AS updated_at,
    updated_at AS event_ts,
    0 AS is_deleted
FROM numbers({traces:UInt64})
SETTINGS max_block_size = 65536, min_insert_block_size_rows = 4194304, min_insert_block_size_bytes = 1073741824;

-- The second versions: another release, and bookmarked.
INSERT INTO traces
SELECT * REPLACE
(
    '2024.12' AS release,
    true AS bookmarked,
    addSeconds(updated_at, 60) AS updated_at,
    addSeconds(event_ts, 60) AS event_ts
)
FROM traces
WHERE toYYYYMM(traces.timestamp) = toYYYYMM({month:Date}) AND cityHash64(id) % 20 = 0
SETTINGS min_insert_block_size_rows = 4194304, min_insert_block_size_bytes = 1073741824;


-- ---------------------------------------------------------------------------
-- Observations
-- ---------------------------------------------------------------------------

INSERT INTO observations
(
    id, trace_id, project_id, environment, type, parent_observation_id, start_time, end_time, name,
    metadata, level, status_message, version, input, output, provided_model_name, internal_model_id,
    model_parameters, provided_usage_details, usage_details, provided_cost_details, cost_details,
    total_cost, completion_start_time, prompt_id, prompt_name, prompt_version, created_at, updated_at,
    event_ts, is_deleted, usage_pricing_tier_id, usage_pricing_tier_name, tool_definitions,
    tool_calls, tool_call_names
)
WITH
    toDateTime64({month:Date}, 3) AS month_start,
    (n, purpose) -> cityHash64(n, purpose) AS hash,
    -- Which trace: any of its day.
    intDiv({traces:UInt64}, 30) AS traces_per_day,
    least(intDiv(number, intDiv({observations:UInt64}, 30)), 29) AS day,
    day * traces_per_day + hash(number, 'trace') % traces_per_day AS trace_number,
    -- Words of two or three syllables; the square makes the first ones frequent.
    splitByChar(' ', 'ba con de el fi gra ho in ja kor lu men no or pre qua re sta ti un ver wo xi yo ze al bro cha dis ex for ter') AS syllables,
    arrayMap(
        w -> concat(
            syllables[1 + hash(w, 'first') % 32],
            syllables[1 + hash(w, 'second') % 32],
            if(w < 200, '', syllables[1 + hash(w, 'third') % 32])),
        range(1024)) AS words,
    (
        SELECT arrayStringConcat(
            arrayMap(
                i -> words[1 + intDiv((cityHash64(i) % 1024) * (cityHash64(i) % 1024), 1024)],
                range(2600000)),
            ' ')
    ) AS corpus,
    (seed, bytes) -> substring(corpus, 1 + seed % 15000000, bytes) AS text,
    -- Between a half and one and a half times the average.
    50 + hash(number, 'length') % 101 AS percent,
    hash(number, 'type') % 2 = 0 AS uses_model,
    hash(number, 'tokens') % 4000 AS tokens_in,
    hash(number, 'tokens out') % 800 AS tokens_out,
    CAST(tokens_in * 3 + tokens_out * 15, 'Decimal(18, 12)') / 1000000 AS cost
SELECT
    lower(hex(MD5(concat('observation ', toString(number))))) AS id,
    -- A trace that does not exist has the id of none.
    lower(hex(MD5(concat(if(number % 50 = 7, 'no trace ', 'trace '), toString(trace_number))))) AS trace_id,
    concat('clw8q2k9v000', ['1support', '2search', '3billing'][
        multiIf(hash(trace_number, 'project') % 10 < 7, 1, hash(trace_number, 'project') % 10 < 9, 2, 3)]) AS project_id,
    'default' AS environment,
    if(uses_model, 'GENERATION', ['SPAN', 'SPAN', 'TOOL', 'EVENT'][1 + hash(number, 'span') % 4]) AS type,
    if(number % 8 = 0, NULL, lower(hex(MD5(concat('observation ', toString(number - number % 8)))))) AS parent_observation_id,
    addMilliseconds(month_start, day * 86400000 + hash(number, 'time') % 86400000) AS start_time,
    addMilliseconds(start_time, 50 + hash(number, 'duration') % 20000) AS end_time,
    ['answer', 'retrieve', 'embed', 'rerank', 'call-tool', 'plan'][1 + hash(number, 'name') % 6] AS name,
    map('region', ['eu', 'us', 'jp'][1 + hash(number, 'region') % 3], 'attempt', toString(number % 3)) AS metadata,
    if(number % 40 = 0, 'ERROR', 'DEFAULT') AS level,
    if(number % 40 = 0, 'rate limit reached', NULL) AS status_message,
    if(number % 5 = 0, concat('v', toString(number % 9)), NULL) AS version,
    text(hash(number, 'input'), intDiv({payload:UInt64} * 7 * percent, 1000)) AS input,
    text(hash(number, 'output'), intDiv({payload:UInt64} * 3 * percent, 1000)) AS output,
    if(uses_model, ['gpt-4o', 'gpt-4o-mini', 'claude-3-5-sonnet'][1 + hash(number, 'model') % 3], NULL) AS provided_model_name,
    if(uses_model, concat('model-', toString(hash(number, 'model') % 3)), NULL) AS internal_model_id,
    if(uses_model, '{"temperature":0.2,"max_tokens":1024}', NULL) AS model_parameters,
    if(uses_model, map('input', tokens_in, 'output', tokens_out), CAST(map(), 'Map(String, UInt64)')) AS provided_usage_details,
    if(uses_model, map('input', tokens_in, 'output', tokens_out, 'total', tokens_in + tokens_out), CAST(map(), 'Map(String, UInt64)')) AS usage_details,
    CAST(map(), 'Map(String, Decimal(18, 12))') AS provided_cost_details,
    if(uses_model, map('total', cost), CAST(map(), 'Map(String, Decimal(18, 12))')) AS cost_details,
    if(uses_model, cost, NULL) AS total_cost,
    if(uses_model, addMilliseconds(start_time, 20), NULL) AS completion_start_time,
    if(number % 10 = 0, concat('prompt-', toString(number % 40)), NULL) AS prompt_id,
    if(number % 10 = 0, concat('Prompt ', toString(number % 40)), NULL) AS prompt_name,
    if(number % 10 = 0, 1 + number % 30, NULL) AS prompt_version,
    start_time AS created_at,
    addSeconds(start_time, 1) AS updated_at,
    updated_at AS event_ts,
    0 AS is_deleted,
    NULL AS usage_pricing_tier_id,
    NULL AS usage_pricing_tier_name,
    map() AS tool_definitions,
    [] AS tool_calls,
    [] AS tool_call_names
FROM numbers({observations:UInt64})
SETTINGS max_block_size = 8192, min_insert_block_size_rows = 1048576, min_insert_block_size_bytes = 1073741824;

-- The second versions: an end time, and another level.
INSERT INTO observations
SELECT * REPLACE
(
    addSeconds(start_time, 40) AS end_time,
    'WARNING' AS level,
    addSeconds(updated_at, 60) AS updated_at,
    addSeconds(event_ts, 60) AS event_ts
)
FROM observations
WHERE toYYYYMM(observations.start_time) = toYYYYMM({month:Date}) AND cityHash64(id) % 50 = 0
SETTINGS min_insert_block_size_rows = 1048576, min_insert_block_size_bytes = 1073741824;
