#!/usr/bin/env bash
# Shows the tool at work: starts a ClickHouse of its own, generates a sample month, backfills it and
# shows what came out. Everything it makes is in a temporary directory and gone afterwards.
#
# `make demo` builds what this needs and then runs it. DEMO_OBSERVATIONS sets the size of the month.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
programs=${CARGO_TARGET_DIR:-$repository/target}/release
observations=${DEMO_OBSERVATIONS:-200000}
partition=202406
month=2024-06-01
database=langfuse

say() { printf '\n\033[1m==> %s\033[0m\n' "$*"; }
[[ -t 1 ]] || say() { printf '\n==> %s\n' "$*"; }
fail() { printf '%s\n' "$*" >&2; exit 1; }

for program in events-backfill examples/embedded_clickhouse; do
    [[ -x $programs/$program ]] || fail "$programs/$program is not built. Run 'make demo'."
done
[[ $observations =~ ^[1-9][0-9]*$ ]] || fail "DEMO_OBSERVATIONS must be a number, not '$observations'."

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

# Runs SQL from standard input in the database of the demo.
sql() { "$repository/scripts/run-sql.sh" "$url" - "database=$database" "$@"; }

library=${CLICKHOUSE_LIBRARY:-$("$repository/scripts/fetch-clickhouse.sh")}

say "Starting ClickHouse"
while port=$((20000 + RANDOM % 12000)) && (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
url=http://127.0.0.1:$port
# The server ends when the other end of the pipe is closed, so it cannot outlive this script even if
# the script is killed.
mkfifo "$workplace/lifeline"
CLICKHOUSE_LIBRARY=$library "$programs/examples/embedded_clickhouse" \
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

say "Creating the tables of Langfuse"
"$repository/scripts/run-sql.sh" "$url" - <<<"CREATE DATABASE $database;"
"$repository/scripts/run-sql.sh" "$url" "$repository/bench-data/schema.sql" "database=$database"

say "Generating a sample month of about $observations observations"
"$repository/scripts/run-sql.sh" "$url" "$repository/bench-data/sample-month.sql" "database=$database" \
    "param_month=$month" "param_observations=$observations"
sql <<'SQL'
SELECT
    (SELECT count() FROM traces) AS trace_rows,
    (SELECT count() FROM observations) AS observation_rows,
    (SELECT uniqExact(project_id) FROM observations) AS projects
FORMAT PrettyCompactMonoBlock;
SQL

say "events-backfill --partition $partition"
(
    # The tool reads a .env file from the current directory; here there is none.
    cd "$workplace"
    CLICKHOUSE_URL=$url CLICKHOUSE_DB=$database CLICKHOUSE_USER=default CLICKHOUSE_PASSWORD='' \
        "$programs/events-backfill" --partition "$partition" --state-dir "$workplace/state"
)

say "What came out: observations that now carry the attributes of their trace"
sql <<'SQL'
SELECT
    span_id, type, name, trace_name, user_id, session_id, tags, release, version, metadata_names
FROM events_full FINAL
WHERE trace_name != '' AND user_id != '' AND notEmpty(tags)
ORDER BY cityHash64(span_id)
LIMIT 3
FORMAT Vertical;
SQL

say "Source against target"
sql "param_partition=$partition" <<'SQL' | tee "$workplace/verdict"
WITH
    (SELECT count() FROM observations FINAL WHERE _partition_id = {partition:String}) AS observations_in_source,
    (SELECT count() FROM events_full FINAL WHERE _partition_id = {partition:String}) AS events_in_target
SELECT
    observations_in_source,
    events_in_target,
    if(observations_in_source = events_in_target, 'equal', 'NOT EQUAL') AS verdict
FORMAT PrettyCompactMonoBlock;
SQL
if grep -q 'NOT EQUAL' "$workplace/verdict"; then
    fail "The target does not have as many events as the source has observations."
fi
