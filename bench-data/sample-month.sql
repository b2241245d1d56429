-- One month of sample data: traces, observations and dataset run items with
-- every oddity that real deployments have shown. Written for tests, the demo
-- and benchmarks. Expects the tables of schema.sql.
--
-- No question marks anywhere: the Rust client takes them for placeholders.
--
-- Query parameters, both always given:
--   month         first day of the month, for example 2024-06-01
--   observations  how many distinct observations, approximately. Every oddity
--                 is there from 20,000 upwards.
--
-- Send the statements one at a time, in this order. Everything derives from
-- row numbers and hashes, never from a random number or the clock, so two loads
-- of one month give equal rows. Load a month once into the same tables. Several
-- months next to each other are fine: their ids differ.
--
-- How it is made: one statement writes the first version of every row. Further
-- statements read back some of those rows, picked by a hash of the id (called
-- `bucket` below, 0 to 999), and write other versions of them. Every INSERT
-- makes new parts, so the versions of one row lie unmerged next to each other
-- until ClickHouse decides otherwise. No two versions of one row have the same
-- event_ts: which of them counts would be undefined.
--
-- Where a column is replaced in the SELECT list, the WHERE names the table
-- (traces.is_deleted): the bare name would mean the replacement.


-- ---------------------------------------------------------------------------
-- Traces
-- ---------------------------------------------------------------------------

-- The first version of every trace. Two in fifty are left out, so their
-- observations have no trace anywhere, and the last twentieth has numbers which
-- no observation uses.
INSERT INTO traces
(
    id, timestamp, name, user_id, metadata, release, version, project_id, environment,
    public, bookmarked, tags, input, output, session_id, created_at, updated_at, event_ts, is_deleted
)
WITH
    toDateTime64({month:Date}, 3) AS month_start,
    toUInt64(dateDiff('millisecond', month_start, toDateTime64(addMonths({month:Date}, 1), 3))) AS month_length,
    -- A number that is fixed for the month, the row and the purpose it serves.
    (n, purpose) -> cityHash64(toString({month:Date}), n, purpose) AS hash,
    n -> multiIf(
        n % 300 = 20, 'o''brien ',
        n % 300 = 21, 'back\\slash ',
        n % 300 = 22, 'new\nline ',
        n % 300 = 23, 'tab\t',
        n % 300 = 24, 'Zürich-ключ-東京 ',
        n % 300 = 25, '🦜',
        n % 300 = 26, unhex('ff'),
        n % 300 = 27, 'zero\0',
        n % 300 = 28, '100% "quoted" `tick` {brace} -- ',
        n % 300 = 29, repeat('long-', 100),
        '') AS odd_prefix,
    t -> MD5(concat('trace ', toString({month:Date}), ' ', toString(t))) AS trace_digest,
    t -> concat(
        odd_prefix(t),
        if(t % 2 = 0, toString(reinterpretAsUUID(trace_digest(t))), lower(hex(trace_digest(t))))) AS trace_id_of,
    t -> multiIf(
        t IN (5, 17), 'clw8q2k9v0006handful',
        hash(t, 'project') % 1000 < 700, 'clw8q2k9v0001support',
        hash(t, 'project') % 1000 < 890, 'clw8q2k9v0002search',
        hash(t, 'project') % 1000 < 960, 'clw8q2k9v0003billing',
        hash(t, 'project') % 1000 < 985, 'clw8q2k9v0004research',
        hash(t, 'project') % 1000 < 997, 'clw8q2k9v0005staging',
        'odd ''project'' \\ "ünï"') AS project_of,
    -- Ten minutes are left free at the end of the month for the observations.
    t -> addMilliseconds(month_start, hash(t, 'time') % (month_length - 600000)) AS time_of,
    splitByChar(' ', concat(
        'the model answer request customer invoice summary context retrieved document passage please explain ',
        'step result error response because however first second value table order delivery refund question ',
        'policy account search index token prompt system user assistant tool call function returns list of ',
        'items with and for not can will about their there which when been have from this that what who ',
        'should could would time day week month year number price total amount status open closed pending ',
        'review')) AS words,
    (seed, length) -> arrayStringConcat(
        arrayMap(
            i -> words[1 + bitShiftRight(cityHash64(seed, intDiv(i, 8)), 8 * (i % 8)) % 90],
            range(toUInt64(length))),
        ' ') AS text,
    CAST(map(), 'Map(String, String)') AS no_pairs
SELECT
    trace_id_of(number) AS id,
    time_of(number) AS timestamp,
    multiIf(
        number % 30 = 1, '',
        number % 30 = 2, 'Frage über Lieferung – 注文 🚚',
        ['chat', 'summarise-document', 'search', 'classify-ticket', 'nightly-evaluation'][1 + hash(number, 'name') % 5]
    ) AS name,
    multiIf(
        number % 5 = 1, NULL,
        number % 50 = 2, '',
        number % 50 = 3, 'jürgen.müller@example.org',
        concat('user-', toString(hash(number, 'user') % 5000))) AS user_id,
    multiIf(
        number % 20 = 0, no_pairs,
        -- More than a hundred keys.
        number % 100 = 1, mapFromArrays(
            arrayMap(i -> concat('trace_key_', toString(i)), range(120 + number % 30)),
            arrayMap(i -> concat(words[1 + cityHash64(number, i) % 90], ' ', toString(i)), range(120 + number % 30))),
        mapConcat(
            -- `region` and `shared_key` are on many observations too: there the
            -- observation's value counts.
            map(
                'customer_tier', ['free', 'pro', 'enterprise'][1 + hash(number, 'tier') % 3],
                'region', concat('trace-', ['eu', 'us', 'jp'][1 + hash(number, 'region') % 3]),
                'shared_key', concat('from the trace ', toString(number))),
            if(number % 12 = 2, map('zero byte', concat('before', '\0', 'after', '\0')), no_pairs),
            if(number % 12 = 3, map('not utf8', concat(unhex('c328'), ' and ', unhex('ff'))), no_pairs),
            if(number % 12 = 4, map('lines', 'first\nsecond\r\nthird\ttabbed'), no_pairs),
            if(number % 12 = 5, map('quote '' " \\ key', '{"nested": "\\"json\\""}', 'schlüssel-鍵', 'wert-値-🔑'), no_pairs),
            if(number % 12 = 6, map('', 'the key is empty', 'empty value', ''), no_pairs),
            if(number % 60 = 9, map('long', repeat('Länge ', 500)), no_pairs),
            if(number % 60 = 7, map(concat('key', unhex('fe')), 'the key is not utf8'), no_pairs),
            -- On a trace this key says nothing about the source of an observation.
            if(number % 12 = 8, map('resourceAttributes', '{"service.name":"on the trace"}'), no_pairs),
            -- The name under which an older events table gets the tags.
            if(number % 40 = 9, map('trace_tags', 'written by the user, on the trace'), no_pairs),
            -- events_full derives columns from these keys.
            if(number % 40 = 11, map('evaluator_id', concat('evaluator-', toString(number % 7)), 'evaluator_test', 'true'), no_pairs))
    ) AS metadata,
    if(hash(number, 'release') % 10 < 6, NULL, concat('2024.', toString(hash(number, 'release') % 12))) AS release,
    multiIf(
        hash(number, 'version') % 10 < 5, NULL,
        number % 70 = 4, '',
        concat('trace-v', toString(hash(number, 'version') % 9))) AS version,
    project_of(number) AS project_id,
    ['default', 'default', 'default', 'production', 'staging'][1 + hash(number, 'environment') % 5] AS environment,
    hash(number, 'public') % 6 = 0 AS public,
    hash(number, 'bookmarked') % 4 = 0 AS bookmarked,
    multiIf(
        number % 5 IN (0, 1), [],
        number % 50 = 2, ['it''s', '"quoted"', 'back\\slash', 'a/b', '</script>'],
        number % 50 = 3, ['größe', '東京', '🏷️', concat('line', unhex('e280a8'), 'paragraph', unhex('e280a9'), 'end')],
        number % 50 = 4, ['', 'empty before', ''],
        number % 50 = 13, ['tab\tnew\nline\rreturn\bback\fform', 'zero\0', concat('controls', char(1, 11, 27, 31, 127), unhex('c285'))],
        number % 50 = 8, [concat('bad', unhex('ff')), unhex('c3'), unhex('eda080'), 'good'],
        number % 50 = 9, arrayMap(i -> concat('tag-', toString(i)), range(100)),
        number % 50 = 12, ['twice', 'twice'],
        arraySlice(
            ['alpha', 'beta', 'customer:acme', 'experiment', 'slow'],
            1 + hash(number, 'tags') % 4,
            1 + hash(number, 'tags count') % 3)
    ) AS tags,
    if(number % 9 = 0, NULL, text(hash(number, 'input'), 20)) AS input,
    if(number % 9 = 1, NULL, text(hash(number, 'output'), 20)) AS output,
    multiIf(
        number % 2 = 1, NULL,
        number % 50 = 6, '',
        concat('session-', toString(hash(number, 'session') % 3000))) AS session_id,
    addMilliseconds(timestamp, 1000) AS created_at,
    addMilliseconds(timestamp, 5000 + hash(number, 'updated') % 20000) AS updated_at,
    updated_at AS event_ts,
    0 AS is_deleted
FROM numbers(intDiv(intDiv({observations:UInt64} + 11, 12) * 2 * 21, 20))
WHERE number % 50 NOT IN (7, 31);

-- A second version of every tenth trace, on the same day: other tags, another
-- user, and an extra metadata key.
INSERT INTO traces
SELECT * REPLACE
(
    concat(name, ' (second version)') AS name,
    arrayConcat(tags, ['second-version']) AS tags,
    concat('second-', ifNull(user_id, 'user')) AS user_id,
    mapConcat(metadata, map('second_version', 'yes')) AS metadata,
    'second-release' AS release,
    NOT public AS public,
    NOT bookmarked AS bookmarked,
    addSeconds(updated_at, 60) AS updated_at,
    addSeconds(event_ts, 60) AS event_ts
)
FROM traces FINAL
WHERE toYYYYMM(traces.timestamp) = toYYYYMM({month:Date}) AND cityHash64(id) % 1000 < 100;

-- A third version of some of those, which takes values away again: null must
-- win over the value of the older version, and empty over full.
INSERT INTO traces
SELECT * REPLACE
(
    'third version' AS name,
    emptyArrayString() AS tags,
    NULL AS user_id,
    NULL AS session_id,
    NULL AS release,
    NULL AS version,
    CAST(map(), 'Map(LowCardinality(String), String)') AS metadata,
    addSeconds(updated_at, 60) AS updated_at,
    addSeconds(event_ts, 60) AS event_ts
)
FROM traces FINAL
WHERE toYYYYMM(traces.timestamp) = toYYYYMM({month:Date}) AND cityHash64(id) % 1000 < 20;

-- Versions that arrive late: written after the others, with an older event_ts.
-- They must lose.
INSERT INTO traces
SELECT * REPLACE
(
    'outdated: must not be seen' AS name,
    ['outdated'] AS tags,
    'outdated-user' AS user_id,
    'outdated-session' AS session_id,
    map('outdated', 'yes') AS metadata,
    subtractSeconds(event_ts, 30) AS event_ts
)
FROM traces FINAL
WHERE toYYYYMM(traces.timestamp) = toYYYYMM({month:Date}) AND cityHash64(id) % 1000 BETWEEN 90 AND 119;

-- Traces that move to another day of the month, three to seven days on, round
-- the end of the month to its beginning: some move forward, some backward. The
-- day is part of the sort key, so ClickHouse never merges the two versions and
-- FINAL alone returns both. The later event_ts counts, whatever its day.
INSERT INTO traces
WITH
    toDateTime64({month:Date}, 3) AS month_start,
    toInt64(dateDiff('millisecond', month_start, toDateTime64(addMonths({month:Date}, 1), 3))) AS month_length,
    cityHash64(id) % 1000 AS bucket
SELECT * REPLACE
(
    addMilliseconds(
        month_start,
        (dateDiff('millisecond', month_start, timestamp) + toInt64(3 + bucket % 5) * 86400000) % month_length
    ) AS timestamp,
    'moved to another day' AS name,
    ['moved'] AS tags,
    concat('moved-', ifNull(user_id, 'user')) AS user_id,
    addSeconds(updated_at, 120) AS updated_at,
    addSeconds(event_ts, 120) AS event_ts
)
FROM traces FINAL
WHERE toYYYYMM(traces.timestamp) = toYYYYMM({month:Date}) AND bucket BETWEEN 120 AND 149;

-- Some of the moved traces are then deleted by their latest version: where they
-- moved to (buckets 130 to 134), where they had been (135 to 139), or on a day
-- where they never were (140 to 144). In all three cases there is no trace any
-- more, although a version that is not deleted lies on at least one day.
INSERT INTO traces
WITH
    toDateTime64({month:Date}, 3) AS month_start,
    toInt64(dateDiff('millisecond', month_start, toDateTime64(addMonths({month:Date}, 1), 3))) AS month_length,
    cityHash64(id) % 1000 AS bucket,
    multiIf(bucket < 135, 0, bucket < 140, -toInt64(3 + bucket % 5), 10) AS days
SELECT * REPLACE
(
    addMilliseconds(
        month_start,
        (dateDiff('millisecond', month_start, timestamp) + days * 86400000 + month_length) % month_length
    ) AS timestamp,
    'deleted after the move: must not be seen' AS name,
    addSeconds(updated_at, 120) AS updated_at,
    addSeconds(event_ts, 120) AS event_ts,
    1 AS is_deleted
)
FROM traces
WHERE toYYYYMM(traces.timestamp) = toYYYYMM({month:Date}) AND bucket BETWEEN 130 AND 144
ORDER BY traces.event_ts DESC
LIMIT 1 BY traces.project_id, id;

-- Some move back to the day where they began, as a third version.
INSERT INTO traces
WITH
    toDateTime64({month:Date}, 3) AS month_start,
    toInt64(dateDiff('millisecond', month_start, toDateTime64(addMonths({month:Date}, 1), 3))) AS month_length,
    cityHash64(id) % 1000 AS bucket
SELECT * REPLACE
(
    addMilliseconds(
        month_start,
        (dateDiff('millisecond', month_start, timestamp) - toInt64(3 + bucket % 5) * 86400000 + month_length) % month_length
    ) AS timestamp,
    'moved there and back' AS name,
    ['moved', 'back'] AS tags,
    addSeconds(updated_at, 120) AS updated_at,
    addSeconds(event_ts, 120) AS event_ts
)
FROM traces
WHERE toYYYYMM(traces.timestamp) = toYYYYMM({month:Date}) AND bucket BETWEEN 145 AND 149
ORDER BY traces.event_ts DESC
LIMIT 1 BY traces.project_id, id;

-- Deleted traces.
INSERT INTO traces
SELECT * REPLACE
(
    'deleted: must not be seen' AS name,
    addSeconds(updated_at, 90) AS updated_at,
    addSeconds(event_ts, 90) AS event_ts,
    1 AS is_deleted
)
FROM traces FINAL
WHERE toYYYYMM(traces.timestamp) = toYYYYMM({month:Date}) AND cityHash64(id) % 1000 BETWEEN 150 AND 169;

-- Some of them came back after the deletion. FINAL hides deleted rows, so this
-- one reads the deleting versions themselves.
INSERT INTO traces
SELECT * REPLACE
(
    'restored after deletion' AS name,
    addSeconds(updated_at, 30) AS updated_at,
    addSeconds(event_ts, 30) AS event_ts,
    0 AS is_deleted
)
FROM traces
WHERE toYYYYMM(traces.timestamp) = toYYYYMM({month:Date})
    AND cityHash64(id) % 1000 BETWEEN 165 AND 169
    AND traces.is_deleted = 1;

-- Deletions that arrive late, with an event_ts older than the live version:
-- they must not delete anything.
INSERT INTO traces
SELECT * REPLACE
(
    'late deletion: must not be seen' AS name,
    subtractSeconds(event_ts, 20) AS event_ts,
    1 AS is_deleted
)
FROM traces FINAL
WHERE toYYYYMM(traces.timestamp) = toYYYYMM({month:Date}) AND cityHash64(id) % 1000 BETWEEN 170 AND 179;


-- ---------------------------------------------------------------------------
-- Observations
-- ---------------------------------------------------------------------------

-- The first version of every observation. Twelve consecutive numbers make two
-- traces of one to eleven observations, six on average. `slot` is the place
-- within the trace: 0 is the root, and slot s hangs below slot (s - 1) / 2.
INSERT INTO observations
(
    id, trace_id, project_id, environment, type, parent_observation_id, start_time, end_time, name, metadata,
    level, status_message, version, input, output, provided_model_name, internal_model_id, model_parameters,
    provided_usage_details, usage_details, provided_cost_details, cost_details, total_cost,
    completion_start_time, prompt_id, prompt_name, prompt_version, created_at, updated_at, event_ts, is_deleted,
    usage_pricing_tier_id, usage_pricing_tier_name, tool_definitions, tool_calls, tool_call_names
)
WITH
    toDateTime64({month:Date}, 3) AS month_start,
    toUInt64(dateDiff('millisecond', month_start, toDateTime64(addMonths({month:Date}, 1), 3))) AS month_length,
    -- The definitions from here to `text` are those of the traces above.
    (n, purpose) -> cityHash64(toString({month:Date}), n, purpose) AS hash,
    n -> multiIf(
        n % 300 = 20, 'o''brien ',
        n % 300 = 21, 'back\\slash ',
        n % 300 = 22, 'new\nline ',
        n % 300 = 23, 'tab\t',
        n % 300 = 24, 'Zürich-ключ-東京 ',
        n % 300 = 25, '🦜',
        n % 300 = 26, unhex('ff'),
        n % 300 = 27, 'zero\0',
        n % 300 = 28, '100% "quoted" `tick` {brace} -- ',
        n % 300 = 29, repeat('long-', 100),
        '') AS odd_prefix,
    t -> MD5(concat('trace ', toString({month:Date}), ' ', toString(t))) AS trace_digest,
    t -> concat(
        odd_prefix(t),
        if(t % 2 = 0, toString(reinterpretAsUUID(trace_digest(t))), lower(hex(trace_digest(t))))) AS trace_id_of,
    t -> multiIf(
        t IN (5, 17), 'clw8q2k9v0006handful',
        hash(t, 'project') % 1000 < 700, 'clw8q2k9v0001support',
        hash(t, 'project') % 1000 < 890, 'clw8q2k9v0002search',
        hash(t, 'project') % 1000 < 960, 'clw8q2k9v0003billing',
        hash(t, 'project') % 1000 < 985, 'clw8q2k9v0004research',
        hash(t, 'project') % 1000 < 997, 'clw8q2k9v0005staging',
        'odd ''project'' \\ "ünï"') AS project_of,
    t -> addMilliseconds(month_start, hash(t, 'time') % (month_length - 600000)) AS time_of,
    splitByChar(' ', concat(
        'the model answer request customer invoice summary context retrieved document passage please explain ',
        'step result error response because however first second value table order delivery refund question ',
        'policy account search index token prompt system user assistant tool call function returns list of ',
        'items with and for not can will about their there which when been have from this that what who ',
        'should could would time day week month year number price total amount status open closed pending ',
        'review')) AS words,
    (seed, length) -> arrayStringConcat(
        arrayMap(
            i -> words[1 + bitShiftRight(cityHash64(seed, intDiv(i, 8)), 8 * (i % 8)) % 90],
            range(toUInt64(length))),
        ' ') AS text,
    CAST(map(), 'Map(String, String)') AS no_pairs,
    (t, slot) -> MD5(concat('observation ', toString({month:Date}), ' ', toString(t), ' ', toString(slot))) AS observation_digest,
    -- OpenTelemetry ids (odd trace numbers) are hexadecimal, the others UUIDs.
    -- Every tenth root has the id under which Langfuse writes a trace as an
    -- observation.
    (t, slot) -> if(
        slot = 0 AND t % 10 = 3,
        concat('t-', trace_id_of(t)),
        concat(
            odd_prefix(t * 12 + slot),
            if(t % 2 = 0,
                toString(reinterpretAsUUID(observation_digest(t, slot))),
                lower(hex(substring(observation_digest(t, slot), 1, 8)))))) AS observation_id_of,
    number -> 1 + hash(intDiv(number, 12), 'cut') % 11 AS cut,
    2 * intDiv(number, 12) + (number % 12 >= cut(number)) AS t,
    number % 12 - if(number % 12 >= cut(number), cut(number), 0) AS slot,
    -- Twelve decimal places, exactly.
    (n, purpose) -> toDecimal64(toInt64(hash(n, purpose) % 100000000000), 0) * toDecimal64('0.000000000001', 12) AS cost,
    if(
        slot = 0,
        ['SPAN', 'AGENT', 'CHAIN'][1 + hash(t, 'root type') % 3],
        [
            'GENERATION', 'GENERATION', 'GENERATION', 'GENERATION', 'GENERATION', 'GENERATION',
            'SPAN', 'SPAN', 'TOOL', 'TOOL', 'EVENT', 'RETRIEVER', 'EMBEDDING', 'GUARDRAIL', 'EVALUATOR'
        ][1 + hash(number, 'type') % 15]
    ) AS kind,
    kind IN ('GENERATION', 'EMBEDDING') AS uses_model,
    number % 8 = 1 AND kind = 'GENERATION' AS calls_tools
SELECT
    -- An id that only looks like `t-<trace_id>` is an ordinary id.
    if(number % 500 = 77, concat('t-', trace_id_of(t + 1), '-', toString(slot)), observation_id_of(t, slot)) AS id,
    if(number % 3000 = 250, '', trace_id_of(t)) AS trace_id,
    project_of(t) AS project_id,
    ['default', 'default', 'default', 'production', 'staging'][1 + hash(t, 'environment') % 5] AS environment,
    kind AS type,
    multiIf(
        slot > 0 AND hash(number, 'lost parent') % 100 = 0, 'an-observation-that-is-nowhere',
        slot > 0, observation_id_of(t, intDiv(slot - 1, 2)),
        -- A trace written as an observation, and yet with a parent.
        t % 50 = 13, 'a-parent-all-the-same',
        t % 3 = 0, '',
        NULL) AS parent_observation_id,
    -- The first and the last millisecond of the month, one in forty on any
    -- other day than its trace, all others within minutes of their trace.
    multiIf(
        number % 5000 = 1111, month_start,
        number % 5000 = 2222, addMilliseconds(month_start, month_length - 1),
        number % 40 = 5, addMilliseconds(month_start, hash(number, 'any time') % month_length),
        addMilliseconds(time_of(t), slot * 20000 + hash(number, 'delay') % 15000)) AS start_time,
    if(kind = 'EVENT' OR hash(number, 'no end') % 12 = 0,
        NULL,
        addMilliseconds(start_time, hash(number, 'duration') % 30000)) AS end_time,
    multiIf(
        number % 90 = 1, '',
        number % 90 = 2, 'Schritt „prüfen“ – 検索 🔍\n',
        ['answer', 'retrieve', 'rerank', 'plan', 'call-model', 'lookup-customer', 'embed'][1 + hash(number, 'name') % 7]
    ) AS name,
    multiIf(
        number % 25 = 0, no_pairs,
        -- More than a hundred keys, half of them also keys of large trace maps.
        number % 150 = 1, mapFromArrays(
            arrayMap(i -> concat(if(i % 2 = 0, 'trace_key_', 'own_key_'), toString(i)), range(110 + number % 20)),
            arrayMap(i -> concat(words[1 + cityHash64(number, i) % 90], ' ', toString(i)), range(110 + number % 20))),
        mapConcat(
            map('step', toString(slot)),
            if(number % 3 = 0, map('region', 'observation-eu', 'shared_key', concat('from the observation ', toString(number))), no_pairs),
            -- What marks an observation that came through OpenTelemetry.
            if(t % 2 = 1 AND number % 10 != 9,
                map(
                    'resourceAttributes', '{"service.name":"assistant","telemetry.sdk.language":"python"}',
                    'scope', '{"name":"langfuse-sdk","version":"3.1.0"}'),
                no_pairs),
            if(number % 30 = 2, map('zero byte', concat('\0', 'between', '\0')), no_pairs),
            if(number % 30 = 4, map('not utf8', concat('a', unhex('80'), 'b', unhex('f09f98'))), no_pairs),
            if(number % 30 = 5, map('lines', 'one\ntwo\r\n\tthree'), no_pairs),
            if(number % 30 = 7, map('quote '' " \\ key', '''single'' "double" \\back\\', 'schlüssel-鍵', '値 🗝️'), no_pairs),
            if(number % 30 = 8, map('', 'the key is empty', 'empty value', ''), no_pairs),
            if(number % 60 = 14, map('long', repeat('長い ', 700)), no_pairs),
            if(number % 90 = 10, map(concat('key', unhex('fe')), 'the key is not utf8'), no_pairs),
            if(number % 60 = 11, map('trace_tags', 'written by the user, on the observation'), no_pairs),
            if(number % 60 = 13, map('job_configuration_id', concat('rule-', toString(number % 5))), no_pairs))
    ) AS metadata,
    ['DEFAULT', 'DEFAULT', 'DEFAULT', 'DEFAULT', 'DEFAULT', 'DEFAULT', 'DEBUG', 'WARNING', 'ERROR'][1 + hash(number, 'level') % 9] AS level,
    multiIf(
        number % 110 = 3, '',
        level IN ('ERROR', 'WARNING'), concat('rate limit „erreicht“: ', text(hash(number, 'status'), 6)),
        NULL) AS status_message,
    multiIf(
        number % 130 = 3, '',
        hash(number, 'version') % 10 < 6, NULL,
        concat('v', toString(hash(number, 'version') % 20))) AS version,
    multiIf(
        number IN (100, 4100), concat('large input ', repeat(text(hash(number, 'input'), 180), 1000)),
        hash(number, 'input kind') % 100 < 6, NULL,
        hash(number, 'input kind') % 100 < 9, '',
        number % 200 = 11, concat('not utf8: ', unhex('fffe80c3'), text(hash(number, 'input'), 20)),
        number % 200 = 12, concat('zero', '\0', 'bytes', '\0\0'),
        number % 200 = 13, 'Grüße, 世界! Привет 👋🏽 \u200b\u202e “quotes” \n\ttail\\',
        hash(number, 'input kind') % 100 < 25, text(hash(number, 'input'), 30 + hash(number, 'input length') % 140),
        concat('{"messages":[{"role":"user","content":"', text(hash(number, 'input'), 30 + hash(number, 'input length') % 140), '"}]}')
    ) AS input,
    multiIf(
        number IN (2100, 4100), concat('large output ', repeat(text(hash(number, 'output'), 180), 1000)),
        kind = 'EVENT', NULL,
        hash(number, 'output kind') % 100 < 6, NULL,
        hash(number, 'output kind') % 100 < 9, '',
        number % 200 = 14, concat(text(hash(number, 'output'), 20), unhex('eda080'), unhex('c0')),
        number % 200 = 15, 'naïve café – 東京 🍣',
        hash(number, 'output kind') % 100 < 60, text(hash(number, 'output'), 30 + hash(number, 'output length') % 140),
        concat('{"role":"assistant","content":"', text(hash(number, 'output'), 30 + hash(number, 'output length') % 140), '"}')
    ) AS output,
    multiIf(
        NOT uses_model, NULL,
        number % 70 = 9, '',
        ['gpt-4o', 'gpt-4o-mini', 'claude-3-5-sonnet', 'text-embedding-3-small'][1 + hash(number, 'model') % 4]) AS provided_model_name,
    if(uses_model AND provided_model_name != '' AND number % 11 != 0,
        concat('model-', toString(hash(number, 'model') % 4)),
        NULL) AS internal_model_id,
    multiIf(
        NOT uses_model OR number % 13 = 0, NULL,
        number % 70 = 10, '',
        concat('{"temperature":', toString(hash(number, 'temperature') % 10 / 10), ',"max_tokens":1024}')) AS model_parameters,
    multiIf(
        NOT uses_model OR number % 17 = 0, CAST(map(), 'Map(String, UInt64)'),
        number % 1000 = 21, map('input', toUInt64(18446744073709551615), 'output', toUInt64(0)),
        map('input', toUInt64(hash(number, 'tokens in') % 9000), 'output', toUInt64(hash(number, 'tokens out') % 2000))
    ) AS provided_usage_details,
    mapConcat(
        provided_usage_details,
        if(empty(provided_usage_details), CAST(map(), 'Map(String, UInt64)'),
            map('total', provided_usage_details['input'] + provided_usage_details['output'], 'input_cached_tokens', toUInt64(number % 50)))
    ) AS usage_details,
    if(uses_model AND number % 10 = 3,
        map('total', cost(number, 'provided cost')),
        CAST(map(), 'Map(String, Decimal(18, 12))')) AS provided_cost_details,
    multiIf(
        NOT uses_model OR number % 17 = 0, CAST(map(), 'Map(String, Decimal(18, 12))'),
        -- The largest and the smallest amounts the type can hold.
        number % 1000 = 21, map('input', toDecimal64('999999.999999999999', 12), 'total', toDecimal64('-999999.999999999999', 12)),
        map(
            'input', cost(number, 'cost in'),
            'output', cost(number, 'cost out'),
            'total', cost(number, 'cost in') + cost(number, 'cost out'))
    ) AS cost_details,
    if(empty(cost_details) OR number % 19 = 0, NULL, cost_details['total']) AS total_cost,
    if(kind = 'GENERATION' AND hash(number, 'first token') % 10 < 6,
        addMilliseconds(start_time, hash(number, 'first token') % 2000),
        NULL) AS completion_start_time,
    if(uses_model AND number % 5 = 2, concat('prompt-', toString(hash(number, 'prompt') % 40)), NULL) AS prompt_id,
    if(uses_model AND number % 5 = 2, concat('Vorlage № ', toString(hash(number, 'prompt') % 40)), NULL) AS prompt_name,
    multiIf(
        NOT (uses_model AND number % 5 = 2), NULL,
        number % 100 = 2, 0,
        number % 100 = 7, 65535,
        1 + hash(number, 'prompt version') % 30) AS prompt_version,
    addMilliseconds(start_time, 1000 + hash(number, 'created') % 999) AS created_at,
    addMilliseconds(start_time, 5000 + hash(number, 'updated') % 20000) AS updated_at,
    updated_at AS event_ts,
    0 AS is_deleted,
    if(uses_model AND number % 6 = 1, concat('tier-', toString(number % 3)), NULL) AS usage_pricing_tier_id,
    multiIf(
        NOT (uses_model AND number % 6 = 1), NULL,
        number % 12 = 1, '',
        'Standard – groß') AS usage_pricing_tier_name,
    if(calls_tools,
        map(
            'lookup_customer', '{"description":"Find a customer","parameters":{"type":"object"}}',
            'größe_prüfen', '{"description":"„Größe“ 📏"}'),
        no_pairs) AS tool_definitions,
    if(calls_tools,
        arrayMap(i -> concat('{"name":"lookup_customer","arguments":"{\\"id\\":', toString(i), '}"}'), range(intDiv(number, 8) % 4)),
        emptyArrayString()) AS tool_calls,
    if(calls_tools, arrayMap(i -> 'lookup_customer', range(intDiv(number, 8) % 4)), emptyArrayString()) AS tool_call_names
FROM numbers_mt({observations:UInt64})
SETTINGS max_block_size = 8192;

-- A second version of every twentieth observation. The sort key (type, day, id)
-- stays as it is, so FINAL and merges keep one of the two.
INSERT INTO observations
SELECT * REPLACE
(
    concat(name, ' (second version)') AS name,
    concat('second version of ', ifNull(output, 'nothing')) AS output,
    mapConcat(metadata, map('second_version', 'yes')) AS metadata,
    'WARNING' AS level,
    'second version' AS status_message,
    addSeconds(start_time, 40) AS end_time,
    addSeconds(updated_at, 60) AS updated_at,
    addSeconds(event_ts, 60) AS event_ts
)
FROM observations FINAL
WHERE toYYYYMM(observations.start_time) = toYYYYMM({month:Date}) AND cityHash64(id) % 1000 < 50;

-- A third version of some of those, which takes values away again.
INSERT INTO observations
SELECT * REPLACE
(
    'third version' AS name,
    NULL AS input,
    NULL AS output,
    NULL AS end_time,
    NULL AS status_message,
    CAST(map(), 'Map(LowCardinality(String), String)') AS metadata,
    addSeconds(updated_at, 60) AS updated_at,
    addSeconds(event_ts, 60) AS event_ts
)
FROM observations FINAL
WHERE toYYYYMM(observations.start_time) = toYYYYMM({month:Date}) AND cityHash64(id) % 1000 < 15;

-- Versions that arrive late: written after the others, with an older event_ts.
-- They must lose.
INSERT INTO observations
SELECT * REPLACE
(
    'outdated: must not be seen' AS name,
    'outdated' AS input,
    'outdated' AS output,
    map('outdated', 'yes') AS metadata,
    subtractSeconds(event_ts, 30) AS event_ts
)
FROM observations FINAL
WHERE toYYYYMM(observations.start_time) = toYYYYMM({month:Date}) AND cityHash64(id) % 1000 BETWEEN 45 AND 69;

-- Deleted observations.
INSERT INTO observations
SELECT * REPLACE
(
    'deleted: must not be seen' AS name,
    addSeconds(updated_at, 90) AS updated_at,
    addSeconds(event_ts, 90) AS event_ts,
    1 AS is_deleted
)
FROM observations FINAL
WHERE toYYYYMM(observations.start_time) = toYYYYMM({month:Date}) AND cityHash64(id) % 1000 BETWEEN 70 AND 84;

-- Some of them came back after the deletion.
INSERT INTO observations
SELECT * REPLACE
(
    'restored after deletion' AS name,
    addSeconds(updated_at, 30) AS updated_at,
    addSeconds(event_ts, 30) AS event_ts,
    0 AS is_deleted
)
FROM observations
WHERE toYYYYMM(observations.start_time) = toYYYYMM({month:Date})
    AND cityHash64(id) % 1000 BETWEEN 82 AND 84
    AND observations.is_deleted = 1;

-- Deletions that arrive late, with an event_ts older than the live version:
-- they must not delete anything.
INSERT INTO observations
SELECT * REPLACE
(
    'late deletion: must not be seen' AS name,
    subtractSeconds(event_ts, 20) AS event_ts,
    1 AS is_deleted
)
FROM observations FINAL
WHERE toYYYYMM(observations.start_time) = toYYYYMM({month:Date}) AND cityHash64(id) % 1000 BETWEEN 85 AND 89;


-- ---------------------------------------------------------------------------
-- The same id in two projects
-- ---------------------------------------------------------------------------

-- Ids are unique within a project only. These traces of the largest project
-- exist in another one too, with other attributes.
INSERT INTO traces
SELECT * REPLACE
(
    'clw8q2k9v0005staging' AS project_id,
    'same id, other project' AS name,
    ['other-project'] AS tags,
    'other-project-user' AS user_id,
    map('other_project', 'yes') AS metadata
)
FROM traces FINAL
WHERE toYYYYMM(traces.timestamp) = toYYYYMM({month:Date})
    AND traces.project_id = 'clw8q2k9v0001support'
    AND cityHash64(id) % 1000 BETWEEN 200 AND 204;

-- Their observations too, so both projects have the same observation ids. One
-- more range of traces (205 to 209) has observations in both projects while the
-- trace is in one of them only: in the other there is no trace.
INSERT INTO observations
SELECT * REPLACE ('clw8q2k9v0005staging' AS project_id)
FROM observations FINAL
WHERE toYYYYMM(observations.start_time) = toYYYYMM({month:Date})
    AND observations.project_id = 'clw8q2k9v0001support'
    AND cityHash64(trace_id) % 1000 BETWEEN 200 AND 209;


-- ---------------------------------------------------------------------------
-- Dataset run items: which traces an experiment produced
-- ---------------------------------------------------------------------------

-- One reference per trace, to the trace as a whole (observation_id is null) or
-- to one of its observations. Made from the observations, so some refer to
-- traces that are deleted or that never were.
INSERT INTO dataset_run_items_rmt
(
    id, project_id, dataset_run_id, dataset_item_id, dataset_id, trace_id, observation_id, error,
    created_at, updated_at, dataset_run_name, dataset_run_description, dataset_run_metadata,
    dataset_run_created_at, dataset_item_version, dataset_item_input, dataset_item_expected_output,
    dataset_item_metadata, event_ts, is_deleted
)
WITH
    cityHash64(trace_id) % 1000 AS bucket,
    toDateTime64({month:Date}, 3) AS month_start
SELECT
    lower(hex(MD5(concat('dataset run item ', project_id, trace_id)))) AS id,
    project_id,
    concat('run-', toString(bucket % 4)) AS dataset_run_id,
    concat('item-', toString(cityHash64(trace_id, 'item') % 200)) AS dataset_item_id,
    'dataset-1' AS dataset_id,
    trace_id,
    if(bucket % 2 = 0, NULL, min(observations.id)) AS observation_id,
    if(bucket = 303, 'timed out', NULL) AS error,
    addHours(month_start, 5) AS created_at,
    addHours(month_start, 5) AS updated_at,
    concat('Experiment №', toString(bucket % 4)) AS dataset_run_name,
    if(bucket % 4 = 0, NULL, 'compares two prompts') AS dataset_run_description,
    map('model', 'gpt-4o') AS dataset_run_metadata,
    addHours(month_start, 4) AS dataset_run_created_at,
    if(bucket % 3 = 0, NULL, month_start) AS dataset_item_version,
    '{"question":"Wo bleibt meine Bestellung"}' AS dataset_item_input,
    if(bucket % 5 = 0, NULL, '{"answer":"Unterwegs"}') AS dataset_item_expected_output,
    map('difficulty', 'easy') AS dataset_item_metadata,
    addHours(month_start, 6) AS event_ts,
    0 AS is_deleted
FROM observations FINAL
WHERE toYYYYMM(start_time) = toYYYYMM({month:Date})
    AND trace_id != ''
    AND bucket BETWEEN 300 AND 319
GROUP BY project_id, trace_id;

-- A second run refers to some of the same traces.
INSERT INTO dataset_run_items_rmt
SELECT * REPLACE
(
    concat(id, '-second-run') AS id,
    'run-second' AS dataset_run_id,
    'Second experiment' AS dataset_run_name
)
FROM dataset_run_items_rmt FINAL
WHERE dataset_run_items_rmt.event_ts = addHours(toDateTime64({month:Date}, 3), 6)
    AND cityHash64(trace_id) % 1000 BETWEEN 317 AND 319;

-- Deleted references. A trace counts as referenced while any reference is left:
-- those of buckets 310 to 316 have none, those of 317 to 319 have the second.
INSERT INTO dataset_run_items_rmt
SELECT * REPLACE
(
    addHours(event_ts, 1) AS updated_at,
    addHours(event_ts, 1) AS event_ts,
    1 AS is_deleted
)
FROM dataset_run_items_rmt FINAL
WHERE dataset_run_items_rmt.event_ts = addHours(toDateTime64({month:Date}, 3), 6)
    AND dataset_run_items_rmt.dataset_run_id != 'run-second'
    AND cityHash64(trace_id) % 1000 BETWEEN 310 AND 319;

-- References of another project to trace ids of the largest one. They say
-- nothing about the traces of the largest project.
INSERT INTO dataset_run_items_rmt
(
    id, project_id, dataset_run_id, dataset_item_id, dataset_id, trace_id, observation_id,
    created_at, updated_at, dataset_run_name, dataset_run_created_at, event_ts, is_deleted
)
SELECT
    lower(hex(MD5(concat('other project ', trace_id)))) AS id,
    'clw8q2k9v0002search' AS project_id,
    'run-other' AS dataset_run_id,
    'item-other' AS dataset_item_id,
    'dataset-2' AS dataset_id,
    trace_id,
    NULL AS observation_id,
    addHours(toDateTime64({month:Date}, 3), 5) AS created_at,
    addHours(toDateTime64({month:Date}, 3), 5) AS updated_at,
    'Other experiment' AS dataset_run_name,
    addHours(toDateTime64({month:Date}, 3), 4) AS dataset_run_created_at,
    addHours(toDateTime64({month:Date}, 3), 8) AS event_ts,
    0 AS is_deleted
FROM observations FINAL
WHERE toYYYYMM(observations.start_time) = toYYYYMM({month:Date})
    AND observations.project_id = 'clw8q2k9v0001support'
    AND trace_id != ''
    AND cityHash64(trace_id) % 1000 BETWEEN 320 AND 324
GROUP BY trace_id;
