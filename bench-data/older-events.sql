-- An events table from before events_full, for tests of a target that lacks
-- columns: no tags, no trace_name, no tool columns, no pricing tier. It has
-- two more places to fill: `metadata`, a map beside the two arrays, and
-- `total_cost` as a real column.
CREATE TABLE events
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
    user_id String,
    session_id String,
    level LowCardinality(String),
    status_message String,
    completion_start_time Nullable(DateTime64(6)),
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
    total_cost Nullable(Decimal(18, 12)),

    input String CODEC(ZSTD(3)),
    input_length UInt64 MATERIALIZED lengthUTF8(input),
    output String CODEC(ZSTD(3)),
    output_length UInt64 MATERIALIZED lengthUTF8(output),

    metadata Map(LowCardinality(String), String),
    metadata_names Array(String),
    metadata_values Array(String),

    source LowCardinality(String),
    service_name String,
    service_version String,
    blob_storage_file_path String,
    event_bytes UInt64,
    created_at DateTime64(6) DEFAULT now(),
    updated_at DateTime64(6) DEFAULT now(),
    event_ts DateTime64(6),
    is_deleted UInt8,

    INDEX idx_span_id span_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_trace_id trace_id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = ReplacingMergeTree(event_ts, is_deleted)
PARTITION BY toYYYYMM(start_time)
PRIMARY KEY (project_id, toStartOfMinute(start_time), xxHash32(trace_id))
ORDER BY (project_id, toStartOfMinute(start_time), xxHash32(trace_id), span_id, start_time);
