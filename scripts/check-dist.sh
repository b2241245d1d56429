#!/usr/bin/env bash
# Checks the release that scripts/dist.sh made in target/dist as its users would: unpacks, installs, runs
# and removes it. Stops at the first defect.
#
# Installing the Debian package needs root (or sudo without a password), and changes this machine until it is
# removed again. Missing tools other than dpkg are installed with apt-get.
#
# CHECK_DIST names a directory other than target/dist; DIST_TARGET works as for scripts/dist.sh. A program
# for another processor is inspected, but not run.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repository"

target=${DIST_TARGET:-x86_64-unknown-linux-gnu}
dist=${CHECK_DIST:-$repository/target/dist}
server=${CARGO_TARGET_DIR:-$repository/target}/$target/release/examples/embedded_clickhouse
version=$(cargo pkgid --offline | sed 's/.*[#@]//')
name=events-backfill-$version-$target

# docs/install.md: "Linux with glibc 2.28 or newer", that is Debian 10, Ubuntu 20.04, RHEL 8.
newest_glibc=2.28
most_bytes=$((30 * 1000 * 1000))
subcommands=(verify repair plan status report pause continue set)

say() { printf '%s\n' "$*"; }
fail() { say "FAILED: $*" >&2; exit 1; }
passed() { say "ok: $*"; }
have() { command -v "$1" >/dev/null 2>&1; }

as_root=()
[[ $(id -u) == 0 ]] || as_root=(sudo -n)
root() { ${as_root[@]+"${as_root[@]}"} "$@"; }

workplace=$(mktemp -d "${TMPDIR:-/tmp}/check-dist.XXXXXX")
installed=''
clean_up() {
    rm -rf "$workplace"
    [[ -z $installed ]] || root dpkg --purge events-backfill >/dev/null
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Prints the path of a required file.
made() {
    [[ -f $dist/$1 ]] || fail "$1 is missing from $dist: run 'make dist'"
    printf '%s\n' "$dist/$1"
}

# The shells, and the tools that check man pages and symbols.
install_tools() {
    local missing=() tool
    for tool in readelf:binutils mandoc:mandoc man:man-db zsh:zsh fish:fish; do
        have "${tool%:*}" || missing+=("${tool#*:}")
    done
    python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    ((${#missing[@]})) || return 0
    say "Installing with apt-get: ${missing[*]}"
    root apt-get update -qq >&2 </dev/null || true
    root env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --quiet --no-install-recommends "${missing[@]}" >&2 </dev/null
}

check_sums() {
    local file
    (cd "$dist" && sha256sum --quiet --check SHA256SUMS) || fail "a checksum in SHA256SUMS is wrong"
    for file in "$tarball" "$deb" "$wheel" "$symbols" "$parts"; do
        grep -qF "  ${file##*/}" "$dist/SHA256SUMS" || fail "SHA256SUMS does not name ${file##*/}"
    done
    passed "SHA256SUMS is correct and names every file"
}

check_portable() {
    local newest needed size
    newest=$(readelf --wide --version-info "$1" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
    newest=${newest#GLIBC_}
    [[ -n $newest ]] || fail "$1 does not name its glibc version"
    [[ $(printf '%s\n' "$newest" "$newest_glibc" | sort -V | tail -n 1) == "$newest_glibc" ]] ||
        fail "$1 needs glibc $newest, which is newer than $newest_glibc"
    needed=$(readelf --wide --dynamic "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' |
        grep -vE '^(lib(c|m|dl|rt|pthread)\.so\.[0-9]+|ld-linux.*)$' || true)
    [[ -z $needed ]] || fail "$1 needs libraries besides glibc: $needed"
    size=$(stat -c %s "$1")
    ((size <= most_bytes)) || fail "$1 has $size bytes; the limit is $most_bytes"
    passed "the program needs only glibc $newest, and has $((size / 1000)) KB"
}

# gdb and addr2line find the symbols by the file name stored in the program.
check_symbols() {
    local address
    readelf --wide --sections "$1" | grep -q '\.symtab' && fail "$1 is not stripped"
    cp "$1" "$symbols" "$workplace"
    address=$(nm --defined-only "$symbols" | sed -n 's/^\([0-9a-f]*\) [tT] .*events_backfill.*dispatch.*main.*/\1/p' |
        head -n 1)
    [[ -n $address ]] || fail "$symbols does not contain the program's functions"
    addr2line --exe "$workplace/events-backfill" "$address" | grep -q 'src/commands/dispatch.rs:' ||
        fail "addr2line finds no source line with $symbols"
    passed "addr2line finds source lines with the symbols beside the program"
}

check_parts() {
    python3 - "$1" <<'PYTHON' || fail "$1 is not a correct SBOM of the program"
import json, sys
parts = json.load(open(sys.argv[1]))
assert parts["bomFormat"] == "CycloneDX", parts["bomFormat"]
assert parts["metadata"]["component"]["name"] == "events-backfill"
listed = {(it["name"], it["version"]) for it in parts["components"]}
lock = open("Cargo.lock").read().split("[[package]]")
version = {}
for package in lock[1:]:
    fields = dict(line.split(" = ", 1) for line in package.strip().splitlines() if " = " in line)
    version.setdefault(fields["name"].strip('"'), fields["version"].strip('"'))
for name in ("librocksdb-sys", "tikv-jemalloc-sys", "lz4-sys", "rustls", "clap"):
    assert (name, version[name]) in listed, name
assert not any(name == "criterion" for name, _ in listed), "what only tests need is listed"
PYTHON
    passed "the SBOM lists what Cargo.lock pins, including RocksDB and jemalloc"
}

# check_version PROGRAM: checks that it runs and prints version, commit and target.
check_version() {
    local said
    said=$("$1" --version)
    [[ $said =~ ^"events-backfill $version ("([0-9a-f]{7,}(-dirty)?", ")?"$target)"$ ]] ||
        fail "'$1 --version' says '$said'"
    passed "$1 --version: $said"
}

# check_share DIRECTORY ZSH: checks the completions and man pages below it with shells and man.
check_share() {
    local share=$1 subcommand said
    for subcommand in '' "${subcommands[@]/#/-}"; do
        local page=$share/man/man1/events-backfill$subcommand.1
        [[ -f $page ]] || page=$page.gz
        [[ -f $page ]] || fail "$page is missing"
        # The pages name a version instead of a date.
        said=$(mandoc -T lint -W warning "$page" | grep -v 'missing date' || true)
        [[ -z $said ]] || fail "mandoc warns about $page: $said"
        MANWIDTH=80 man --warnings --local-file "$page" >/dev/null 2>"$workplace/said" </dev/null
        [[ ! -s $workplace/said ]] || fail "man warns about $page: $(cat "$workplace/said")"
    done
    # shellcheck disable=SC2016 # it is for that shell
    said=$(bash --norc -c 'source "$1"; COMP_WORDS=(events-backfill ver); COMP_CWORD=1
        function=$(complete -p events-backfill); function=${function#*-F }
        "${function%% *}" events-backfill ver events-backfill; echo "${COMPREPLY[*]}"' \
        bash "$share/bash-completion/completions/events-backfill")
    [[ $said == verify ]] || fail "bash completes 'ver' to '$said'"
    said=$(HOME=$workplace fish --no-config --command "source $share/fish/vendor_completions.d/events-backfill.fish
        complete --do-complete 'events-backfill repair --opt'")
    [[ $said == --optimize* ]] || fail "fish completes '--opt' to '$said'"
    # shellcheck disable=SC2016
    said=$(zsh -f -c 'fpath=("$1" $fpath); autoload -Uz compinit; compinit -u -D; print $_comps[events-backfill]
        autoload +X -Uz _events-backfill' zsh "$share/$2")
    [[ $said == _events-backfill ]] || fail "zsh completes events-backfill with '$said'"
    passed "man and mandoc accept the pages, and bash, fish and zsh the completions: $share"
}

check_tarball() {
    local unpacked=$workplace/usr/local file
    mkdir -p "$unpacked"
    ! tar -tzf "$tarball" | grep -v "^$name/" || fail "$tarball has files outside $name"
    tar -xzf "$tarball" --strip-components=1 -C "$unpacked"
    for file in README.md LICENSE .env.example docs/upgrade.md docs/terminal.svg; do
        cmp -s "$file" "$unpacked/share/doc/events-backfill/$file" || fail "$file is missing from $tarball, or differs"
    done
    check_portable "$unpacked/bin/events-backfill"
    check_symbols "$unpacked/bin/events-backfill"
    program=$unpacked/bin/events-backfill share=$unpacked/share
}

check_wheel() {
    python3 -m venv "$workplace/venv"
    "$workplace/venv/bin/pip" install --quiet --disable-pip-version-check --no-index "$wheel"
    check_version "$workplace/venv/bin/events-backfill"
    cmp "$program" "$workplace/venv/bin/events-backfill" || fail "the wheel's program differs from the tarball's"
}

check_deb() {
    local file left
    if dpkg --status events-backfill >/dev/null 2>&1; then
        fail "the package events-backfill is installed on this machine: remove it, then run this again"
    fi
    root true || fail "installing $deb needs root: run this as root"
    installed=yes
    root dpkg --install "$deb" >/dev/null
    check_version /usr/bin/events-backfill
    cmp "$program" /usr/bin/events-backfill || fail "the program in $deb differs from the tarball's"
    dpkg --listfiles events-backfill >"$workplace/files"
    while read -r file; do
        [[ -d $file ]] || printf '%s\n' "$file"
    done <"$workplace/files" >"$workplace/plain-files"
    # In container images, dpkg often omits man pages and documents.
    if grep -qs '^path-exclude' /etc/dpkg/dpkg.cfg /etc/dpkg/dpkg.cfg.d/*; then
        say "dpkg on this machine omits files, so man pages and completions of the package are not checked"
    else
        check_share /usr/share zsh/vendor-completions
        man --where events-backfill-repair >/dev/null || fail "man does not find events-backfill-repair"
        man --where events-backfill >/dev/null || fail "man does not find events-backfill"
    fi
    root dpkg --purge events-backfill >/dev/null
    installed=''
    left=$(while read -r file; do [[ ! -e $file ]] || printf '%s ' "$file"; done <"$workplace/plain-files")
    left+=$(find / -xdev \( -path /proc -o -path "$repository" -o -path "$workplace" \) -prune \
        -o -path '/usr/share/*events-backfill*' -print)
    [[ -z $left ]] || fail "files left after removal: $left"
    passed "the Debian package installs, and leaves nothing behind when removed"
}

# Backfills and verifies three months with the program from the tarball.
check_backfill() {
    [[ -x $server ]] || fail "$server is missing: run 'make dist'"
    DEMO_PROGRAM=$program DEMO_SERVER=$server DEMO_OBSERVATIONS=${DEMO_OBSERVATIONS:-20000} \
        scripts/demo.sh >"$workplace/demo.log" 2>&1 ||
        fail "the backfill of generated months failed: $(tail -n 30 "$workplace/demo.log")"
    passed "the program from the tarball backfills generated months, and verify finds them equal"
}

tarball=$(made "$name.tar.gz")
symbols=$(made "$name.debug")
parts=$(made "$name.cdx.json")
case $target in
    x86_64-*) deb=$(made "events-backfill_$version-1_amd64.deb") ;;
    *) deb=$(made "events-backfill_$version-1_arm64.deb") ;;
esac
wheel=$(made "events_backfill-$version-py3-none-manylinux_2_28_${target%%-*}.whl")
program='' share=''

install_tools
check_sums
check_parts "$parts"
check_tarball
check_share "$share" zsh/site-functions
if [[ $target == "$(uname -m)-unknown-linux-gnu" ]]; then
    check_version "$program"
    check_wheel
    check_deb
    check_backfill
else
    say "This machine cannot run programs for $target: the program was neither run nor installed."
fi
say "All checks passed."
