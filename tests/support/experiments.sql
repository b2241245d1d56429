-- To which item of a dataset run each span of the traces that have items belongs: the nearest
-- span above it, or itself, that an item points at. Written from the description of the tables,
-- independent of the Rust code: it walks up from each span, step by step, over all months.
-- A deleted span is no event, but what lies below it still lies below what is above it.
--
-- One SELECT without a closing semicolon: the span's key and its experiment columns.
WITH RECURSIVE
    latest_observation AS
    (
        SELECT project_id, trace_id, id, ifNull(parent_observation_id, '') AS parent
        FROM observations
        ORDER BY event_ts DESC
        LIMIT 1 BY project_id, trace_id, id
    ),
    item AS
    (
        SELECT
            i.*,
            if(ifNull(i.observation_id, '') = '', concat('t-', i.trace_id), assumeNotNull(i.observation_id)) AS pointed
        FROM dataset_run_items_rmt AS i FINAL
        -- Of several items that point at the same span the latest counts.
        ORDER BY i.created_at DESC, i.id DESC
        LIMIT 1 BY i.project_id, i.trace_id, pointed
    ),
    span AS
    (
        SELECT
            project_id, trace_id, id AS span_id,
            multiIf(
                id = concat('t-', trace_id), '',
                parent = '', concat('t-', trace_id),
                parent) AS parent_span_id
        FROM latest_observation
        WHERE (project_id, trace_id) IN (SELECT project_id, trace_id FROM item)
        UNION DISTINCT
        SELECT project_id, trace_id, concat('t-', trace_id) AS span_id, '' AS parent_span_id
        FROM item
    ),
    walk AS
    (
        SELECT project_id, trace_id, span_id AS start, span_id AS at, 0 AS steps
        FROM span
        UNION ALL
        SELECT walk.project_id, walk.trace_id, walk.start, span.parent_span_id, walk.steps + 1
        FROM walk
        INNER JOIN span
            ON span.project_id = walk.project_id
            AND span.trace_id = walk.trace_id
            AND span.span_id = walk.at
        -- Deeper than any tree in the tests, and an end for those that go in circles.
        WHERE span.parent_span_id != '' AND walk.steps < 12
    ),
    nearest AS
    (
        SELECT walk.project_id AS project_id, walk.trace_id AS trace_id, walk.start AS span_id,
            argMin(item.id, walk.steps) AS item_id, argMin(item.pointed, walk.steps) AS pointed
        FROM walk
        INNER JOIN item
            ON item.project_id = walk.project_id
            AND item.trace_id = walk.trace_id
            AND item.pointed = walk.at
        GROUP BY project_id, trace_id, span_id
    )
SELECT
    nearest.project_id AS project_id,
    nearest.trace_id AS trace_id,
    nearest.span_id AS span_id,
    item.dataset_run_id AS experiment_id,
    item.dataset_run_name AS experiment_name,
    mapKeys(item.dataset_run_metadata) AS experiment_metadata_names,
    mapValues(item.dataset_run_metadata) AS experiment_metadata_values,
    ifNull(item.dataset_run_description, '') AS experiment_description,
    item.dataset_id AS experiment_dataset_id,
    item.dataset_item_id AS experiment_item_id,
    CAST(item.dataset_item_version, 'Nullable(DateTime64(6))') AS experiment_item_version,
    ifNull(item.dataset_item_expected_output, '') AS experiment_item_expected_output,
    mapKeys(item.dataset_item_metadata) AS experiment_item_metadata_names,
    mapValues(item.dataset_item_metadata) AS experiment_item_metadata_values,
    nearest.pointed AS experiment_item_root_span_id
FROM nearest
INNER JOIN item
    ON item.project_id = nearest.project_id
    AND item.trace_id = nearest.trace_id
    AND item.pointed = nearest.pointed
