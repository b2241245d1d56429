#!/usr/bin/env bash
# Fuzzes what is read from ClickHouse and from the state directory, one target of fuzz/ after the other.
# Installs what is missing: cargo-fuzz, and a nightly toolchain where rustup is there.
#
# FUZZ_SECONDS is how long each target runs, by default 60; words after the script's name are targets, by
# default all. An input that fails is left in fuzz/artifacts/TARGET, and said.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seconds=${FUZZ_SECONDS:-60}
target=${CARGO_TARGET_DIR:-target}

say() { printf '%s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

if ! cargo +nightly --version >/dev/null 2>&1; then
    command -v rustup >/dev/null ||
        fail "Fuzzing needs a nightly toolchain: install rustup as https://rustup.rs describes, then run this again."
    say "Installing a nightly toolchain with rustup."
    rustup toolchain install nightly --profile minimal --no-self-update
fi
if ! cargo fuzz --version >/dev/null 2>&1; then
    say "Installing cargo-fuzz."
    cargo install cargo-fuzz --version 0.13.2 --locked --quiet
fi

# Nothing of RocksDB is fuzzed: the one that was built for the tests will do.
rocksdb=$(find "$target/release/build" -path '*/librocksdb-sys-*/out/librocksdb.a' 2>/dev/null | head -n 1)
if [[ -z ${ROCKSDB_LIB_DIR:-} && -n $rocksdb ]]; then
    ROCKSDB_LIB_DIR=$(cd "$(dirname "$rocksdb")" && pwd)
    export ROCKSDB_LIB_DIR ROCKSDB_STATIC=1
fi

if (($# == 0)); then
    # shellcheck disable=SC2046 # one word for each target
    set -- $(cargo +nightly fuzz list)
fi
for target; do
    say "Fuzzing $target for $seconds seconds."
    # No sanitizer: there is no unsafe code here, and the allocator of the program is not theirs.
    cargo +nightly fuzz run --sanitizer none "$target" -- -max_total_time="$seconds" -max_len=65536 -print_final_stats=1
done
