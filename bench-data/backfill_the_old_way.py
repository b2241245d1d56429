"""The old way to backfill: a Python script, the third peer of events-backfill in the benchmark.

All traces of the month go into a dictionary. Then observations come in pages, each becomes an event
in Python, and events go to ClickHouse in batches of 10,000, through clickhouse-connect. It is meant
to be a fair peer, so it does what a sensible author would do:

* A page is a range of the observations' sort key, made of whole groups of (project, type, day), so
  that ClickHouse reads each part of the partition once. (A page that is asked for by comparing whole
  tuples makes ClickHouse scan the partition again for each page.)
* Only what events need of a trace is read and kept, and texts that come again are kept once.
* On this machine nothing is compressed on the way.

The last line it prints is a summary in JSON.
"""

import argparse
import itertools
import json
import sys
import time

import clickhouse_connect

BATCH_ROWS = 10_000

TRACE_QUERY = """
SELECT project_id, id, name, user_id, session_id, release, version, tags, public, bookmarked, metadata
FROM traces FINAL
WHERE _partition_id = {partition:String}
"""

GROUP_QUERY = """
SELECT project_id, CAST(type, 'String') AS type, toDate(start_time) AS day, count() AS observations
FROM observations
WHERE _partition_id = {partition:String}
GROUP BY project_id, type, day
ORDER BY project_id, type, day
"""

OBSERVATION_COLUMNS = """
id trace_id project_id environment type parent_observation_id start_time end_time name metadata level
status_message version input output provided_model_name internal_model_id model_parameters
provided_usage_details usage_details provided_cost_details cost_details completion_start_time prompt_id
prompt_name prompt_version created_at updated_at event_ts usage_pricing_tier_id usage_pricing_tier_name
tool_definitions tool_calls tool_call_names
""".split()

PAGE_QUERY = f"""
SELECT {", ".join(OBSERVATION_COLUMNS)}
FROM observations FINAL
WHERE _partition_id = {{partition:String}}
    AND (project_id, CAST(type, 'String'), toDate(start_time)) IN ({{groups}})
"""

EVENT_COLUMNS = """
project_id trace_id span_id parent_span_id start_time end_time name type environment version release
trace_name user_id session_id tags level status_message completion_start_time bookmarked public prompt_id
prompt_name prompt_version model_id provided_model_name model_parameters provided_usage_details
usage_details provided_cost_details cost_details usage_pricing_tier_id usage_pricing_tier_name
tool_definitions tool_calls tool_call_names input output metadata_names metadata_values source created_at
updated_at event_ts is_deleted
""".split()


class Trace:
    """What events take from a trace."""

    # fmt: off
    __slots__ = (
        "bookmarked", "metadata", "name", "public", "release", "session_id", "tags", "user_id", "version",
    )
    # fmt: on

    def __init__(
        self, name, user_id, session_id, release, version, tags, public, bookmarked, metadata
    ):
        self.name = sys.intern(name)
        self.user_id = sys.intern(user_id or "")
        self.session_id = sys.intern(session_id or "")
        self.release = sys.intern(release or "")
        self.version = version
        self.tags = tags
        self.public = public
        self.bookmarked = bookmarked
        self.metadata = metadata


NO_TRACE = Trace("", None, None, None, None, [], False, False, {})


def load_traces(client, partition, settings):
    """All traces of the month, by project and id."""
    traces = {}
    parameters = {"partition": partition}
    with client.query_rows_stream(TRACE_QUERY, parameters, settings) as rows:
        for project_id, trace_id, *attributes in rows:
            traces[sys.intern(project_id), trace_id] = Trace(*attributes)
    return traces


def pages(client, partition, settings):
    """Lists of neighbouring groups that have at least a batch of observations together."""
    page, observations = [], 0
    groups = client.query(GROUP_QUERY, {"partition": partition}, settings).result_rows
    for project_id, kind, day, count in groups:
        page.append((project_id, kind, day))
        observations += count
        if observations >= BATCH_ROWS:
            yield page
            page, observations = [], 0
    if page:
        yield page


def read_page(client, partition, groups, settings):
    """The observations of a page, as dictionaries."""
    text = ", ".join(
        f"('{project_id}', '{kind}', toDate('{day}'))" for project_id, kind, day in groups
    )
    query = PAGE_QUERY.replace("{groups}", text)
    with client.query_rows_stream(query, {"partition": partition}, settings) as rows:
        for row in rows:
            yield dict(zip(OBSERVATION_COLUMNS, row))


def parent_of(observation):
    """The span that an event hangs below."""
    root = "t-" + observation["trace_id"]
    if observation["id"] == root:
        return ""
    return observation["parent_observation_id"] or root


def event_of(observation, trace):
    """The event that an observation becomes, as a row of EVENT_COLUMNS."""
    metadata = dict(observation["metadata"])
    for name, value in trace.metadata.items():
        metadata.setdefault(name, value)
    version = observation["version"]
    if version is None:
        version = trace.version or ""
    return (
        observation["project_id"],
        observation["trace_id"],
        observation["id"],
        parent_of(observation),
        observation["start_time"],
        observation["end_time"],
        observation["name"],
        observation["type"],
        observation["environment"],
        version,
        trace.release,
        trace.name,
        trace.user_id,
        trace.session_id,
        trace.tags,
        observation["level"],
        observation["status_message"] or "",
        observation["completion_start_time"],
        trace.bookmarked and not observation["parent_observation_id"],
        trace.public,
        observation["prompt_id"] or "",
        observation["prompt_name"] or "",
        observation["prompt_version"],
        observation["internal_model_id"] or "",
        observation["provided_model_name"] or "",
        "{}" if observation["model_parameters"] is None else observation["model_parameters"],
        observation["provided_usage_details"],
        observation["usage_details"],
        observation["provided_cost_details"],
        observation["cost_details"],
        observation["usage_pricing_tier_id"],
        observation["usage_pricing_tier_name"],
        observation["tool_definitions"],
        observation["tool_calls"],
        observation["tool_call_names"],
        observation["input"] or "",
        observation["output"] or "",
        list(metadata.keys()),
        list(metadata.values()),
        "otel-backfill"
        if "resourceAttributes" in observation["metadata"]
        else "ingestion-api-backfill",
        observation["created_at"],
        observation["updated_at"],
        observation["event_ts"],
        0,
    )


def events(client, partition, traces, settings):
    """All events of the month."""
    for page in pages(client, partition, settings):
        for observation in read_page(client, partition, page, settings):
            key = observation["project_id"], observation["trace_id"]
            yield event_of(observation, traces.get(key, NO_TRACE))


def main():
    """Backfills one month."""
    parser = argparse.ArgumentParser(description="Backfill events the old way.")
    parser.add_argument(
        "--port", type=int, required=True, help="HTTP port of ClickHouse on this machine"
    )
    parser.add_argument("--database", required=True)
    parser.add_argument("--partition", required=True, help="the month, YYYYMM")
    parser.add_argument("--target", required=True, help="the table to fill")
    parser.add_argument("--most", type=int, help="stop after so many observations")
    parser.add_argument(
        "--settings", type=json.loads, default={}, help="settings of all statements, as JSON"
    )
    arguments = parser.parse_args()

    def connect():
        return clickhouse_connect.get_client(
            host="127.0.0.1",
            port=arguments.port,
            database=arguments.database,
            compress=False,
            autogenerate_session_id=False,
        )

    reader, writer = connect(), connect()
    started = time.monotonic()
    settings = arguments.settings
    traces = load_traces(reader, arguments.partition, settings)
    loaded = time.monotonic()
    rows = events(reader, arguments.partition, traces, settings)
    rows = itertools.islice(rows, arguments.most)
    written = 0
    while batch := list(itertools.islice(rows, BATCH_ROWS)):
        writer.insert(
            arguments.target,
            batch,
            column_names=EVENT_COLUMNS,
            settings={"async_insert": 0, **settings},
        )
        written += len(batch)
    print(
        json.dumps(
            {
                "traces": len(traces),
                "observations": written,
                "seconds_load": loaded - started,
                "seconds_stream": time.monotonic() - loaded,
            }
        )
    )


if __name__ == "__main__":
    main()
