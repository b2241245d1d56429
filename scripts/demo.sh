#!/usr/bin/env bash
# Demonstrates the program: starts a private ClickHouse, generates three months of history, backfills
# them, shows some events and verifies all. Everything is in a temporary directory that is removed at the
# end.
#
# `make demo` builds what this needs, then runs it. DEMO_OBSERVATIONS sets the size of a month;
# DEMO_REPORT names a file for the report, to be opened in a browser. DEMO_PROGRAM and DEMO_SERVER name
# an events-backfill and an embedded_clickhouse other than those built here.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
programs=${CARGO_TARGET_DIR:-$repository/target}/release
observations=${DEMO_OBSERVATIONS:-70000}
months=(2024-04-01 2024-05-01 2024-06-01)
database=langfuse

say() { printf '\n\033[1m==> %s\033[0m\n' "$*"; }
[[ -t 1 ]] || say() { printf '\n==> %s\n' "$*"; }
fail() { printf '%s\n' "$*" >&2; exit 1; }

program=${DEMO_PROGRAM:-$programs/events-backfill}
embedded=${DEMO_SERVER:-$programs/embedded_clickhouse}
for file in "$program" "$embedded"; do
    [[ -x $file ]] || fail "$file is not built. Run 'make demo'."
done
[[ $observations =~ ^[1-9][0-9]*$ ]] || fail "DEMO_OBSERVATIONS is '$observations'. Set it to a whole number above 0."

workplace=$(mktemp -d "${TMPDIR:-/tmp}/events-backfill-demo.XXXXXX")
server=''
clean_up() {
    if [[ -n $server ]]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$workplace"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

server_log() {
    printf 'The last lines of its log:\n'
    tail -n 20 "$workplace/server.log" | sed 's/^/    /'
}

# Runs SQL from standard input in the demo's database.
sql() { "$repository/scripts/run-sql.sh" "$url" - "database=$database" "$@"; }

library=${CLICKHOUSE_LIBRARY:-$("$repository/scripts/fetch-clickhouse.sh")}

say "Starting ClickHouse"
while port=$((20000 + RANDOM % 12000)) && (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
url=http://127.0.0.1:$port
# The server ends when this pipe is closed, so it cannot outlive the script, even if that is killed.
mkfifo "$workplace/lifeline"
CLICKHOUSE_LIBRARY=$library "$embedded" \
    --path "$workplace/clickhouse" --http-port "$port" --exit-with-stdin \
    <"$workplace/lifeline" >"$workplace/server.log" 2>&1 &
server=$!
exec 8>"$workplace/lifeline"

deadline=$((SECONDS + 60))
until [[ $(curl --silent --max-time 2 "$url/ping") == Ok. ]]; do
    kill -0 "$server" 2>/dev/null || fail "ClickHouse did not start. $(server_log)"
    ((SECONDS < deadline)) || fail "ClickHouse did not answer within 60 seconds. $(server_log)"
    sleep 0.2
done
echo "ClickHouse $("$repository/scripts/run-sql.sh" "$url" - <<<'SELECT version();') answers on $url"

say "Creating Langfuse's tables"
"$repository/scripts/run-sql.sh" "$url" - <<<"CREATE DATABASE $database;"
"$repository/scripts/run-sql.sh" "$url" "$repository/bench-data/schema.sql" "database=$database"

say "Generating three months of about $observations observations each"
for month in "${months[@]}"; do
    "$repository/scripts/run-sql.sh" "$url" "$repository/bench-data/sample-month.sql" \
        "database=$database" "param_month=$month" "param_observations=$observations"
done
# Long traces that begin in one month and continue in the next.
sql <<'SQL'
INSERT INTO observations
SELECT * REPLACE (concat(o.id, '-later') AS id, addDays(o.start_time, 30) AS start_time)
FROM observations AS o FINAL
WHERE toYYYYMM(o.start_time) < 202406 AND cityHash64(o.id) % 50 = 0;
SELECT
    toYYYYMM(start_time) AS month,
    count() AS observation_rows,
    uniqExact(project_id) AS projects,
    uniqExact(trace_id) AS traces
FROM observations
GROUP BY month
ORDER BY month
FORMAT PrettyCompactMonoBlock;
SQL

# Changes the directory, so that no .env file of yours is read.
backfill() {
    say "events-backfill $*"
    (
        cd "$workplace"
        CLICKHOUSE_URL=$url CLICKHOUSE_DB=$database CLICKHOUSE_USER=default CLICKHOUSE_PASSWORD='' \
            STATE_DIR=$workplace/state "$program" "$@"
    )
}

backfill plan --partition 202406
backfill --all-partitions
backfill status

say "Two of the events: a root span, and an observation of an experiment below it"
sql <<'SQL'
SELECT
    span_id, parent_span_id, type, name, trace_name, user_id, session_id, tags, metadata_names,
    experiment_name, experiment_item_id, experiment_item_root_span_id
FROM events_full FINAL
WHERE (project_id, trace_id) IN
(
    SELECT project_id, trace_id
    FROM events_full FINAL
    WHERE experiment_id != '' AND user_id != ''
    GROUP BY project_id, trace_id
    HAVING countIf(span_id = concat('t-', trace_id)) = 1 AND count() > 1
    ORDER BY cityHash64(trace_id)
    LIMIT 1
)
ORDER BY span_id != concat('t-', trace_id), span_id
LIMIT 2
FORMAT Vertical;
SQL

# Fails, and with it the script, if source and target differ.
backfill verify --all-partitions

if [[ -n ${DEMO_REPORT:-} ]]; then
    backfill report --html "$(realpath -- "$DEMO_REPORT")"
fi

say "Done"
printf '\342\234\223 %s\n' \
    "Three months backfilled, with their traces held on disk" \
    "Every event verified against its observation and trace" \
    ${DEMO_REPORT:+"Report written: open $DEMO_REPORT in a browser"}
