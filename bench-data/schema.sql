-- The tables of a Langfuse deployment of version 4 that this tool touches, as
-- its ClickHouse migrations up to number 0048 leave them: same columns, types,
-- defaults, indexes and settings, because they decide what an insert costs and
-- which columns may be written. Written for tests, the demo and benchmarks.
-- A real deployment makes its own tables.
--
-- Send the statements one at a time. Names carry no database: the connection
-- chooses it. A statement ends with a semicolon at the end of a line, and
-- comments stand on lines of their own, so splitting needs no SQL parser.

-- Source. The partition key makes `_partition_id` read like 202406. The sort
-- key holds the day of the timestamp, not the timestamp: a trace whose
-- timestamp moves within its day is replaced by a merge, one that moves to
-- another day leaves its older version behind for good.
CREATE TABLE traces
(
    id String,
    timestamp DateTime64(3),
    name String,
    user_id Nullable(String),
    metadata Map(LowCardinality(String), String),
    release Nullable(String),
    version Nullable(String),
    project_id String,
    environment LowCardinality(String) DEFAULT 'default',
    public Bool,
    bookmarked Bool,
    tags Array(String),
    input Nullable(String) CODEC(ZSTD(3)),
    output Nullable(String) CODEC(ZSTD(3)),
    session_id Nullable(String),
    created_at DateTime64(3) DEFAULT now(),
    updated_at DateTime64(3) DEFAULT now(),
    event_ts DateTime64(3),
    is_deleted UInt8,

    INDEX idx_id id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX idx_res_metadata_key mapKeys(metadata) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_res_metadata_value mapValues(metadata) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_session_id session_id TYPE bloom_filter GRANULARITY 1,
    INDEX idx_user_id user_id TYPE bloom_filter GRANULARITY 1,
    INDEX idx_created_at created_at TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(event_ts, is_deleted)
PARTITION BY toYYYYMM(timestamp)
PRIMARY KEY (project_id, toDate(timestamp))
ORDER BY (project_id, toDate(timestamp), id);

-- Source. The last five columns came with later versions, so they stand at the
-- end, as ALTER TABLE put them there. The sort key has no trace_id: reading in
-- the order of traces is never cheap.
CREATE TABLE observations
(
    id String,
    trace_id String,
    project_id String,
    environment LowCardinality(String) DEFAULT 'default',
    type LowCardinality(String),
    parent_observation_id Nullable(String),
    start_time DateTime64(3),
    end_time Nullable(DateTime64(3)),
    name String,
    metadata Map(LowCardinality(String), String),
    level LowCardinality(String),
    status_message Nullable(String),
    version Nullable(String),
    input Nullable(String) CODEC(ZSTD(3)),
    output Nullable(String) CODEC(ZSTD(3)),
    provided_model_name Nullable(String),
    internal_model_id Nullable(String),
    model_parameters Nullable(String),
    provided_usage_details Map(LowCardinality(String), UInt64),
    usage_details Map(LowCardinality(String), UInt64),
    provided_cost_details Map(LowCardinality(String), Decimal64(12)),
    cost_details Map(LowCardinality(String), Decimal64(12)),
    total_cost Nullable(Decimal64(12)),
    completion_start_time Nullable(DateTime64(3)),
    prompt_id Nullable(String),
    prompt_name Nullable(String),
    prompt_version Nullable(UInt16),
    created_at DateTime64(3) DEFAULT now(),
    updated_at DateTime64(3) DEFAULT now(),
    event_ts DateTime64(3),
    is_deleted UInt8,
    usage_pricing_tier_id Nullable(String),
    usage_pricing_tier_name Nullable(String),
    tool_definitions Map(String, String) DEFAULT map(),
    tool_calls Array(String) DEFAULT [],
    tool_call_names Array(String) DEFAULT [],

    INDEX idx_id id TYPE bloom_filter GRANULARITY 1,
    INDEX idx_trace_id trace_id TYPE bloom_filter GRANULARITY 1,
    INDEX idx_res_metadata_key mapKeys(metadata) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_res_metadata_value mapValues(metadata) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_created_at created_at TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(event_ts, is_deleted)
PARTITION BY toYYYYMM(start_time)
PRIMARY KEY (project_id, type, toDate(start_time))
ORDER BY (project_id, type, toDate(start_time), id);

-- Which traces were produced by an experiment run over a dataset. Not
-- partitioned: an experiment of one month may refer to a trace of another.
CREATE TABLE dataset_run_items_rmt
(
    id String,
    project_id String,
    dataset_run_id String,
    dataset_item_id String,
    dataset_id String,
    trace_id String,
    observation_id Nullable(String),
    error Nullable(String),
    created_at DateTime64(3) DEFAULT now(),
    updated_at DateTime64(3) DEFAULT now(),
    dataset_run_name String,
    dataset_run_description Nullable(String),
    dataset_run_metadata Map(LowCardinality(String), String),
    dataset_run_created_at DateTime64(3),
    dataset_item_input Nullable(String) CODEC(ZSTD(3)),
    dataset_item_expected_output Nullable(String) CODEC(ZSTD(3)),
    dataset_item_metadata Map(LowCardinality(String), String),
    event_ts DateTime64(3),
    is_deleted UInt8,
    dataset_item_version Nullable(DateTime64(3)),

    INDEX idx_dataset_item dataset_item_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX idx_trace_id trace_id TYPE bloom_filter(0.001) GRANULARITY 1
)
ENGINE = ReplacingMergeTree(event_ts, is_deleted)
ORDER BY (project_id, dataset_id, dataset_run_id, id)
SETTINGS enable_block_number_column = 1, enable_block_offset_column = 1;

-- Target. The large granules suit rows with prompts of many kilobytes, and the
-- text indexes are the dearest part of every insert.
CREATE TABLE events_full
(
    project_id String,
    trace_id String,
    span_id String,
    parent_span_id String,
    start_time DateTime64(6),
    end_time Nullable(DateTime64(6)),

    name String,
    type LowCardinality(String),
    environment LowCardinality(String) DEFAULT 'default',
    version String,
    release String,
    trace_name String,
    user_id String,
    session_id String,
    tags Array(String),
    level LowCardinality(String),
    status_message String,
    completion_start_time Nullable(DateTime64(6)),
    is_app_root Bool DEFAULT false,
    bookmarked Bool DEFAULT false,
    public Bool DEFAULT false,

    prompt_id String,
    prompt_name String,
    prompt_version Nullable(UInt16),

    model_id String,
    provided_model_name String,
    model_parameters String,

    provided_usage_details Map(LowCardinality(String), UInt64),
    usage_details Map(LowCardinality(String), UInt64),
    provided_cost_details Map(LowCardinality(String), Decimal(18, 12)),
    cost_details Map(LowCardinality(String), Decimal(18, 12)),
    -- The next four columns are computed by ClickHouse and can not be inserted.
    calculated_input_cost Decimal(18, 12)
        MATERIALIZED arraySum(mapValues(mapFilter(x -> positionCaseInsensitive(x.1, 'input') > 0, cost_details))),
    calculated_output_cost Decimal(18, 12)
        MATERIALIZED arraySum(mapValues(mapFilter(x -> positionCaseInsensitive(x.1, 'output') > 0, cost_details))),
    calculated_total_cost Decimal(18, 12)
        MATERIALIZED arraySum(mapValues(mapFilter(
            x -> positionCaseInsensitive(x.1, 'input') > 0 OR positionCaseInsensitive(x.1, 'output') > 0,
            cost_details))),
    total_cost Decimal(18, 12) ALIAS cost_details['total'],
    usage_pricing_tier_id Nullable(String),
    usage_pricing_tier_name Nullable(String),

    tool_definitions Map(String, String),
    tool_calls Array(String),
    tool_call_names Array(String),

    input String CODEC(ZSTD(3)),
    input_length UInt64 MATERIALIZED lengthUTF8(input),
    output String CODEC(ZSTD(3)),
    output_length UInt64 MATERIALIZED lengthUTF8(output),

    metadata_names Array(String),
    metadata_values Array(String),

    -- The next three have defaults that read the metadata: a writer that sends
    -- an empty string for "no value" instead of leaving them out breaks them.
    evaluator_id String
        DEFAULT arrayElement(metadata_values, indexOf(metadata_names, 'evaluator_id')),
    evaluation_rule_id String
        DEFAULT if(
            notEmpty(arrayElement(metadata_values, indexOf(metadata_names, 'evaluation_rule_id'))),
            arrayElement(metadata_values, indexOf(metadata_names, 'evaluation_rule_id')),
            arrayElement(metadata_values, indexOf(metadata_names, 'job_configuration_id'))),
    evaluator_execution_is_test Bool
        DEFAULT has(metadata_names, 'evaluator_test')
            AND arrayElement(metadata_values, indexOf(metadata_names, 'evaluator_test')) = 'true',

    experiment_id String,
    experiment_name String,
    experiment_metadata_names Array(String),
    experiment_metadata_values Array(String),
    experiment_description String,
    experiment_dataset_id String,
    experiment_item_id String,
    experiment_item_version Nullable(DateTime64(6)),
    experiment_item_expected_output String,
    experiment_item_metadata_names Array(String),
    experiment_item_metadata_values Array(String),
    experiment_item_root_span_id String,

    source LowCardinality(String),
    service_name String,
    service_version String,
    scope_name String,
    scope_version String,
    telemetry_sdk_language LowCardinality(String),
    telemetry_sdk_name String,
    telemetry_sdk_version String,

    blob_storage_file_path String,
    event_bytes UInt64,
    created_at DateTime64(6) DEFAULT now(),
    updated_at DateTime64(6) DEFAULT now(),
    event_ts DateTime64(6),
    is_deleted UInt8,
    ingestion_api_key String DEFAULT '',
    ingestion_sdk_name LowCardinality(String) DEFAULT 'unknown',
    ingestion_sdk_version LowCardinality(String) DEFAULT 'unknown',

    INDEX idx_span_id span_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_trace_id trace_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_user_id user_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_session_id session_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_created_at created_at TYPE minmax GRANULARITY 1,
    INDEX idx_updated_at updated_at TYPE minmax GRANULARITY 1,
    INDEX idx_fts_input_low lower(input) TYPE text(tokenizer = splitByNonAlpha),
    INDEX idx_fts_output_low lower(output) TYPE text(tokenizer = splitByNonAlpha),
    INDEX idx_fts_metadata_values metadata_values TYPE text(tokenizer = splitByNonAlpha),
    INDEX idx_fts_metadata_names metadata_names TYPE text(tokenizer = splitByNonAlpha),
    INDEX idx_ngram_metadata_values arrayStringConcat(metadata_values)
        TYPE ngrambf_v1(4, 32000, 3, 0) GRANULARITY 2
)
ENGINE = ReplacingMergeTree(event_ts, is_deleted)
PARTITION BY toYYYYMM(start_time)
PRIMARY KEY (project_id, toStartOfMinute(start_time), xxHash32(trace_id))
ORDER BY (project_id, toStartOfMinute(start_time), xxHash32(trace_id), span_id, start_time)
SAMPLE BY xxHash32(trace_id)
SETTINGS
    index_granularity_bytes = '64Mi',
    merge_max_block_size_bytes = '64Mi',
    enable_block_number_column = 1,
    enable_block_offset_column = 1,
    prewarm_mark_cache = 1,
    prewarm_primary_key_cache = 1,
    enable_full_text_index = 1;

-- Filled by the view below and by nothing else: events_full without the long
-- values. It has other indexes than events_full.
CREATE TABLE events_core
(
    project_id String,
    trace_id String,
    span_id String,
    parent_span_id String,
    start_time DateTime64(6),
    end_time Nullable(DateTime64(6)),

    name String,
    type LowCardinality(String),
    environment LowCardinality(String) DEFAULT 'default',
    version String,
    release String,
    trace_name String,
    user_id String,
    session_id String,
    tags Array(String),
    level LowCardinality(String),
    status_message String,
    completion_start_time Nullable(DateTime64(6)),
    is_app_root Bool DEFAULT false,
    bookmarked Bool DEFAULT false,
    public Bool DEFAULT false,

    prompt_id String,
    prompt_name String,
    prompt_version Nullable(UInt16),

    model_id String,
    provided_model_name String,
    model_parameters String,

    provided_usage_details Map(LowCardinality(String), UInt64),
    usage_details Map(LowCardinality(String), UInt64),
    provided_cost_details Map(LowCardinality(String), Decimal(18, 12)),
    cost_details Map(LowCardinality(String), Decimal(18, 12)),
    calculated_input_cost Decimal(18, 12)
        MATERIALIZED arraySum(mapValues(mapFilter(x -> positionCaseInsensitive(x.1, 'input') > 0, cost_details))),
    calculated_output_cost Decimal(18, 12)
        MATERIALIZED arraySum(mapValues(mapFilter(x -> positionCaseInsensitive(x.1, 'output') > 0, cost_details))),
    calculated_total_cost Decimal(18, 12)
        MATERIALIZED arraySum(mapValues(mapFilter(
            x -> positionCaseInsensitive(x.1, 'input') > 0 OR positionCaseInsensitive(x.1, 'output') > 0,
            cost_details))),
    total_cost Decimal(18, 12) ALIAS cost_details['total'],
    usage_pricing_tier_id Nullable(String),
    usage_pricing_tier_name Nullable(String),

    tool_definitions Map(String, String),
    tool_calls Array(String),
    tool_call_names Array(String),

    input String,
    input_length UInt64 MATERIALIZED lengthUTF8(input),
    output String,
    output_length UInt64 MATERIALIZED lengthUTF8(output),

    metadata_names Array(String),
    metadata_values Array(String),
    evaluator_id String
        DEFAULT arrayElement(metadata_values, indexOf(metadata_names, 'evaluator_id')),
    evaluation_rule_id String
        DEFAULT if(
            notEmpty(arrayElement(metadata_values, indexOf(metadata_names, 'evaluation_rule_id'))),
            arrayElement(metadata_values, indexOf(metadata_names, 'evaluation_rule_id')),
            arrayElement(metadata_values, indexOf(metadata_names, 'job_configuration_id'))),
    evaluator_execution_is_test Bool
        DEFAULT has(metadata_names, 'evaluator_test')
            AND arrayElement(metadata_values, indexOf(metadata_names, 'evaluator_test')) = 'true',

    experiment_id String,
    experiment_name String,
    experiment_metadata_names Array(String),
    experiment_metadata_values Array(String),
    experiment_description String,
    experiment_dataset_id String,
    experiment_item_id String,
    experiment_item_version Nullable(DateTime64(6)),
    experiment_item_expected_output String,
    experiment_item_metadata_names Array(String),
    experiment_item_metadata_values Array(String),
    experiment_item_root_span_id String,

    source LowCardinality(String),
    service_name String,
    service_version String,
    scope_name String,
    scope_version String,
    telemetry_sdk_language LowCardinality(String),
    telemetry_sdk_name String,
    telemetry_sdk_version String,

    blob_storage_file_path String,
    event_bytes UInt64,
    created_at DateTime64(6) DEFAULT now(),
    updated_at DateTime64(6) DEFAULT now(),
    event_ts DateTime64(6),
    is_deleted UInt8,
    ingestion_api_key String DEFAULT '',
    ingestion_sdk_name LowCardinality(String) DEFAULT 'unknown',
    ingestion_sdk_version LowCardinality(String) DEFAULT 'unknown',

    INDEX idx_span_id span_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_trace_id trace_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_user_id user_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_session_id session_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_created_at created_at TYPE minmax GRANULARITY 1,
    INDEX idx_updated_at updated_at TYPE minmax GRANULARITY 1,
    INDEX idx_provided_model_name provided_model_name TYPE bloom_filter(0.01) GRANULARITY 2,
    INDEX idx_experiment_id experiment_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_metadata_names metadata_names TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_evaluator_id evaluator_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_evaluation_rule_id evaluation_rule_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_fts_metadata_values metadata_values TYPE text(tokenizer = splitByNonAlpha),
    INDEX idx_fts_metadata_names metadata_names TYPE text(tokenizer = splitByNonAlpha),
    INDEX idx_ngram_metadata_values arrayStringConcat(metadata_values)
        TYPE ngrambf_v1(4, 32000, 3, 0) GRANULARITY 2
)
ENGINE = ReplacingMergeTree(event_ts, is_deleted)
PARTITION BY toYYYYMM(start_time)
PRIMARY KEY (project_id, toStartOfMinute(start_time), xxHash32(trace_id))
ORDER BY (project_id, toStartOfMinute(start_time), xxHash32(trace_id), span_id, start_time)
SAMPLE BY xxHash32(trace_id)
SETTINGS
    enable_block_number_column = 1,
    enable_block_offset_column = 1,
    prewarm_mark_cache = 1,
    prewarm_primary_key_cache = 1,
    enable_full_text_index = 1;

-- Runs inside every insert into events_full, which is why the writer never
-- writes events_core itself: the rows would be there twice.
CREATE MATERIALIZED VIEW events_core_mv TO events_core AS
SELECT
    project_id,
    trace_id,
    span_id,
    parent_span_id,
    start_time,
    end_time,
    name,
    type,
    environment,
    version,
    release,
    trace_name,
    user_id,
    session_id,
    tags,
    level,
    status_message,
    completion_start_time,
    is_app_root,
    bookmarked,
    public,
    prompt_id,
    prompt_name,
    prompt_version,
    model_id,
    provided_model_name,
    model_parameters,
    provided_usage_details,
    usage_details,
    provided_cost_details,
    cost_details,
    usage_pricing_tier_id,
    usage_pricing_tier_name,
    tool_definitions,
    tool_calls,
    tool_call_names,
    leftUTF8(input, 200) AS input,
    leftUTF8(output, 200) AS output,
    metadata_names,
    arrayMap(value -> leftUTF8(value, 200), metadata_values) AS metadata_values,
    evaluator_id,
    evaluation_rule_id,
    evaluator_execution_is_test,
    experiment_id,
    experiment_name,
    experiment_metadata_names,
    experiment_metadata_values,
    experiment_description,
    experiment_dataset_id,
    experiment_item_id,
    experiment_item_version,
    experiment_item_expected_output,
    experiment_item_metadata_names,
    experiment_item_metadata_values,
    experiment_item_root_span_id,
    source,
    service_name,
    service_version,
    scope_name,
    scope_version,
    telemetry_sdk_language,
    telemetry_sdk_name,
    telemetry_sdk_version,
    blob_storage_file_path,
    event_bytes,
    created_at,
    updated_at,
    event_ts,
    is_deleted,
    ingestion_api_key,
    ingestion_sdk_name,
    ingestion_sdk_version
FROM events_full;
