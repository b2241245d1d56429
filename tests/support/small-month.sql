-- A handful of rows for tests that care about what the program says rather than about the rows:
-- June 2024 with three live traces and six live observations, July with one observation.

INSERT INTO traces (id, timestamp, name, user_id, metadata, project_id, tags, event_ts, is_deleted) VALUES
    ('trace-1', '2024-06-03 10:00:00', 'first version', 'ann', map('a', '1'), 'project', ['x'], '2024-06-03 10:00:01', 0),
    ('trace-2', '2024-06-04 10:00:00', 'second trace', NULL, map(), 'project', [], '2024-06-04 10:00:01', 0),
    ('trace-3', '2024-06-05 10:00:00', 'third trace', 'bob', map('b', '2'), 'other', ['y', 'z'], '2024-06-05 10:00:01', 0),
    ('trace-4', '2024-06-06 10:00:00', 'to be deleted', 'eve', map(), 'other', [], '2024-06-06 10:00:01', 0);

INSERT INTO traces (id, timestamp, name, user_id, metadata, project_id, tags, event_ts, is_deleted) VALUES
    ('trace-1', '2024-06-03 10:00:00', 'latest version', 'ann', map('a', '1'), 'project', ['x'], '2024-06-03 11:00:00', 0),
    ('trace-4', '2024-06-06 10:00:00', 'deleted', 'eve', map(), 'other', [], '2024-06-06 11:00:00', 1);

INSERT INTO observations (id, trace_id, project_id, type, start_time, name, metadata, input, event_ts, is_deleted) VALUES
    ('observation-1', 'trace-1', 'project', 'SPAN', '2024-06-03 10:00:00', 'one', map('a', 'own'), 'input', '2024-06-03 10:00:01', 0),
    ('observation-2', 'trace-1', 'project', 'GENERATION', '2024-06-03 10:00:01', 'two', map(), NULL, '2024-06-03 10:00:02', 0),
    ('observation-3', 'trace-2', 'project', 'SPAN', '2024-06-04 10:00:00', 'three', map(), '', '2024-06-04 10:00:01', 0),
    ('observation-4', 'trace-3', 'other', 'SPAN', '2024-06-05 10:00:00', 'four', map(), 'input', '2024-06-05 10:00:01', 0),
    ('observation-5', 'trace-4', 'other', 'SPAN', '2024-06-06 10:00:00', 'five', map(), 'input', '2024-06-06 10:00:01', 0),
    ('observation-6', 'nowhere', 'other', 'EVENT', '2024-06-07 10:00:00', 'six', map(), 'input', '2024-06-07 10:00:01', 0),
    ('observation-7', 'trace-1', 'project', 'EVENT', '2024-06-07 10:00:00', 'seven', map(), 'input', '2024-06-07 10:00:01', 0),
    ('observation-8', 'trace-1', 'project', 'SPAN', '2024-07-01 00:00:00', 'next month', map(), 'input', '2024-07-01 00:00:01', 0);

INSERT INTO observations (id, trace_id, project_id, type, start_time, name, metadata, input, event_ts, is_deleted) VALUES
    ('observation-7', 'trace-1', 'project', 'EVENT', '2024-06-07 10:00:00', 'deleted', map(), 'input', '2024-06-07 10:00:02', 1);
