#!/usr/bin/env bash
# Sends the statements of a file to ClickHouse over HTTP, one after another, and prints the results.
#
#   run-sql.sh URL FILE [NAME=VALUE ...]
#
# Each NAME=VALUE becomes a parameter of the request: `database=demo`, a setting, or a query parameter
# ({month:Date} is `param_month=2024-06-01`). FILE can be `-` for standard input.
#
# A statement ends with a semicolon at the end of a line; lines that begin with `--` are comments.
# tests/support/mod.rs splits files in the same way.
set -euo pipefail

if (($# < 2)); then
    sed -n '2,/^set /{ /^#/s/^# \{0,1\}//p; }' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
url=$1
file=$2
shift 2

encode() {
    local LC_ALL=C text=$1 encoded='' character i
    for ((i = 0; i < ${#text}; i++)); do
        character=${text:i:1}
        case $character in
            [A-Za-z0-9._~-]) encoded+=$character ;;
            *) encoded+=$(printf '%%%02X' $(($(printf '%d' "'$character") & 255))) ;;
        esac
    done
    printf '%s' "$encoded"
}

# Without this, an exception after the first rows would still have the status 200.
parameters=wait_end_of_query=1
for parameter; do
    parameters+="&$(encode "${parameter%%=*}")=$(encode "${parameter#*=}")"
done
case $url in
    *\?*) url+="&$parameters" ;;
    *) url+="/?$parameters" ;;
esac

answer=$(mktemp)
trap 'rm -f "$answer"' EXIT

send() {
    local status
    status=$(printf '%s' "$1" |
        curl --silent --show-error --output "$answer" --write-out '%{http_code}' --data-binary @- "$url") ||
        exit 1
    if [[ $status != 200 ]]; then
        {
            printf 'ClickHouse rejected a statement in %s:\n' "$file"
            printf '%s\n' "$1" | sed -n '1,3s/^/    /p'
            cat "$answer"
        } >&2
        exit 1
    fi
    cat "$answer"
}

if [[ $file != - ]]; then
    exec <"$file"
fi
statement=''
while IFS= read -r line || [[ -n $line ]]; do
    if [[ $line =~ ^[[:space:]]*-- ]] || [[ -z $statement && -z ${line//[[:space:]]/} ]]; then
        continue
    fi
    if [[ $line =~ \;[[:space:]]*$ ]]; then
        send "$statement${line%;*}"
        statement=''
    else
        statement+=$line$'\n'
    fi
done
if [[ -n ${statement//[[:space:]]/} ]]; then
    send "$statement"
fi
