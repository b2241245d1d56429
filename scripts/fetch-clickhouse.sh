#!/usr/bin/env bash
# Provides ClickHouse for the tests and the demo, as a shared library from the npm registry, and prints
# its path. Downloads it at most once per user.
#
#   fetch-clickhouse.sh              download it if necessary, print its path
#   fetch-clickhouse.sh --is-there   exit with 0 if it is already downloaded, else with 1
#
# The library is kept in $EVENTS_BACKFILL_CACHE, by default ~/.cache/events-backfill. If
# CLICKHOUSE_BINARY names a clickhouse executable, no library is needed and nothing happens.
set -euo pipefail

# Keep this equal to the version in examples/embedded_clickhouse.rs.
version=26.7.3-stable.1

# sha512sum of the package for Linux on x86-64, which continuous integration uses. For all platforms npm
# checks downloads against the registry's checksum.
sha512_linux_x64=5cff7b98caa7739b59a4a432c11f0dedc2d3b073624e61ebdf4a42e66ce8de35a6ba48ca9f62016bad1cd81fe059435cb858ce3235a8a2b408082a81563e70a7

say() { printf '%s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

if [[ -n ${CLICKHOUSE_BINARY:-} ]]; then
    exit 0
fi

directory=${EVENTS_BACKFILL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/events-backfill}/clickhouse-$version
library=$directory/libchdb.so

if [[ ${1:-} == --is-there ]]; then
    [[ -f $library ]]
    exit
fi
if [[ -f $library ]]; then
    echo "$library"
    exit 0
fi

case $(uname -s)-$(uname -m) in
    Linux-x86_64) platform=linux-x64-gnu ;;
    Linux-aarch64) platform=linux-arm64-gnu ;;
    Darwin-arm64) platform=darwin-arm64 ;;
    Darwin-x86_64) platform=darwin-x64 ;;
    *)
        fail "There is no ClickHouse library for $(uname -s) on $(uname -m)." \
            "Set CLICKHOUSE_BINARY to a clickhouse executable."
        ;;
esac
command -v npm >/dev/null ||
    fail "npm is needed to fetch ClickHouse. Run scripts/install-prerequisites.sh, or set" \
        "CLICKHOUSE_BINARY to a clickhouse executable."

mkdir -p "$directory"

# Of two concurrent runs, one downloads and the other waits. Without flock both download, which is
# harmless: the file appears under its name only when complete.
if command -v flock >/dev/null; then
    exec 9>"$directory/lock"
    flock 9
    if [[ -f $library ]]; then
        echo "$library"
        exit 0
    fi
fi

# On the same file system, so that the last step is an atomic rename.
workplace=$(mktemp -d "$directory/incomplete.XXXXXX")
trap 'rm -rf "$workplace"' EXIT

say "Downloading ClickHouse $version for $platform (178 MB) into $directory"
cd "$workplace"
package=$(npm_config_cache=$workplace/npm npm pack --loglevel=error "@chdb/lib-$platform@$version" </dev/null) ||
    fail "npm could not download ClickHouse. Its message is above."
package=$workplace/${package##*$'\n'}

if [[ $platform == linux-x64-gnu ]]; then
    actual=$(sha512sum "$package" | cut -d ' ' -f 1)
    [[ $actual == "$sha512_linux_x64" ]] ||
        fail "The downloaded ClickHouse package has the checksum $actual instead of" \
            "$sha512_linux_x64, and was deleted."
fi

tar -xzf "$package" package/libchdb.so
mv -f package/libchdb.so "$library"
echo "$library"
