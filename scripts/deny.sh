#!/usr/bin/env bash
# Checks what the program is made of against deny.toml: licences, sources, two versions of one crate, and
# what is known of weaknesses. Installs cargo-deny if it is missing.
#
#   deny.sh                leave weaknesses out, and say so, where their database cannot be reached
#   deny.sh --advisories   fail there
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=0.20.2

say() { printf '%s\n' "$*" >&2; }

case ${1:-} in
    '') must_reach='' ;;
    --advisories) must_reach=yes ;;
    *) say "Unknown option $1. There is only --advisories."; exit 2 ;;
esac

if ! cargo deny --version >/dev/null 2>&1; then
    say "Installing cargo-deny $version, which takes five to ten minutes on two cores, once."
    # It is not what is measured: optimizing it at link time would take as long again.
    CARGO_PROFILE_RELEASE_LTO=off cargo install cargo-deny --version "$version" --locked --quiet
fi

cargo deny --locked check licenses bans sources
if cargo deny --locked fetch db; then
    cargo deny --locked --offline check advisories
else
    say "Weaknesses were not looked for: https://github.com/RustSec/advisory-db cannot be reached."
    [[ -z $must_reach ]]
fi
