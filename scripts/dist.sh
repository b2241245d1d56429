#!/usr/bin/env bash
# Makes what a release consists of, for Linux with glibc 2.28 or newer, into target/dist:
#
#   events-backfill-VERSION-TARGET.tar.gz   the program, completions, man pages, documents; for /usr/local
#   events-backfill-VERSION-TARGET.debug    its debug symbols, for gdb: put it beside the program
#   events-backfill_VERSION-1_ARCH.deb      the same for Debian and Ubuntu
#   events_backfill-VERSION-….whl           the program alone, for pip and pipx
#   events-backfill-VERSION-TARGET.cdx.json what it is made of, as CycloneDX (SBOM)
#   SHA256SUMS                              checksums of all of them
#
# DIST_TARGET is x86_64-unknown-linux-gnu unless it says aarch64-unknown-linux-gnu, which is built without
# its program being run: completions and man pages are those of a build for x86-64, which goes before.
#
# RocksDB is compiled for that glibc by clang, once, which takes 12 minutes or more on two cores. What is
# missing is installed: zig and maturin in a directory of their own, cargo-deb and cargo-cyclonedx beside
# them, and the rest with apt-get.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repository"

target=${DIST_TARGET:-x86_64-unknown-linux-gnu}
glibc=2.28
dist=$repository/target/dist
stage=$dist/stage
built=${CARGO_TARGET_DIR:-$repository/target}/$target/release
tools=${EVENTS_BACKFILL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/events-backfill}/dist-tools

# zig contains clang, the C++ library, and the symbols of each glibc.
python_tools=(ziglang==0.15.2 cargo-zigbuild==0.24.1 maturin==1.16.0 wheel==0.48.0)
cargo_tools=(cargo-deb@3.8.0 cargo-cyclonedx@0.5.9)

say() { printf '%s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# What cross-compiles RocksDB must not find one that was compiled for this machine.
unset ROCKSDB_LIB_DIR ROCKSDB_INCLUDE_DIR ROCKSDB_STATIC ROCKSDB_COMPILE LZ4_LIB_DIR

case $target in
    x86_64-unknown-linux-gnu) platform=manylinux_2_28_x86_64 binutils='' binutils_package=binutils ;;
    aarch64-unknown-linux-gnu)
        platform=manylinux_2_28_aarch64
        binutils=aarch64-linux-gnu- binutils_package=binutils-aarch64-linux-gnu
        # Kernels for arm64 have pages of 4, 16 or 64 KiB, and jemalloc runs where its own are not smaller.
        export JEMALLOC_SYS_WITH_LG_PAGE=16
        ;;
    *) fail "DIST_TARGET is '$target': it is x86_64-unknown-linux-gnu or aarch64-unknown-linux-gnu." ;;
esac

# The same commit makes the same files, whatever the time is.
if [[ -z ${SOURCE_DATE_EPOCH:-} ]]; then
    SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.lock)
    export SOURCE_DATE_EPOCH
fi

# install_package COMMAND PACKAGE: with apt-get, unless the command is there.
install_package() {
    local as_root=()
    have "$1" && return
    have apt-get || fail "$1 is missing. Install it with the package manager of this system, then run this again."
    if [[ $(id -u) != 0 ]]; then
        sudo -n true 2>/dev/null || fail "$1 is missing. Run this, then try again: sudo apt-get install $2"
        as_root=(sudo -n)
    fi
    say "Installing with apt-get: $2"
    ${as_root[@]+"${as_root[@]}"} apt-get update -qq >&2 </dev/null || true
    ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --quiet --no-install-recommends "$2" >&2 </dev/null
}

install_tools() {
    local name version tool wanted
    install_package "${binutils}objcopy" "$binutils_package"
    [[ -x $tools/bin/pip ]] || {
        python3 -c 'import ensurepip' 2>/dev/null || install_package ensurepip python3-venv
        say "Making a directory for the tools of a release: $tools"
        python3 -m venv "$tools"
    }
    wanted=$(printf '%s\n' "${python_tools[@]}")
    [[ $(cat "$tools/installed.txt" 2>/dev/null) == "$wanted" ]] || {
        say "Installing with pip: ${python_tools[*]}"
        "$tools/bin/pip" install --quiet --disable-pip-version-check "${python_tools[@]}" >&2
        printf '%s\n' "$wanted" >"$tools/installed.txt"
    }
    for tool in "${cargo_tools[@]}"; do
        name=${tool%@*} version=${tool#*@}
        grep -qsF "\"$name $version " "$tools/.crates.toml" || {
            say "Installing with cargo: $tool"
            cargo install --quiet --locked --root "$tools" --target-dir "$tools/build" "$tool"
            rm -rf "$tools/build"
        }
    done
    PATH=$tools/bin:$PATH
}

# Rust's own library for the target comes with rustup, or with the compiler.
require_target() {
    [[ -d $(rustc --print target-libdir --target "$target") ]] && return
    have rustup || fail "Rust's library for $target is missing: install it (rustup target add $target), then" \
        "run this again."
    say "Installing with rustup: the library for $target"
    rustup target add "$target" >&2
}

# The program; and, to prove it with, the server of the demo for the same glibc.
build() {
    # zig's compiler adds debug symbols of its own accord, hundreds of megabytes of RocksDB's. The rest of the
    # flags for C++ stands in .cargo/config.toml, in whose place this is.
    local cxx_flags=-g0
    [[ $target != x86_64-* ]] || cxx_flags+=' -msse4.2'
    export "CFLAGS_${target//-/_}=-g0" "CXXFLAGS_${target//-/_}=$cxx_flags"
    say "Building for $target and glibc $glibc"
    cargo-zigbuild zigbuild --release --locked --target "$target.$glibc" \
        --bins --example embedded_clickhouse
}

# What a package holds, as it lies below /usr/local: bin and share.
lay_out() {
    local name=$1 pages=$dist/share documents=$stage/share/doc/events-backfill
    rm -rf "$stage"
    mkdir -p "$stage/bin" "$documents"

    # The symbols are found by the name of their file, beside the program.
    "${binutils}objcopy" --only-keep-debug --compress-debug-sections \
        "$built/events-backfill" "$dist/$name.debug"
    chmod 644 "$dist/$name.debug"
    "${binutils}strip" --strip-all -o "$stage/bin/events-backfill" "$built/events-backfill"
    "${binutils}objcopy" --add-gnu-debuglink="$dist/$name.debug" "$stage/bin/events-backfill"

    if [[ $target == "$(uname -m)-unknown-linux-gnu" ]]; then
        rm -rf "$pages"
        "$stage/bin/events-backfill" generate "$pages"
    elif [[ ! -d $pages ]]; then
        fail "A program for $target does not run here, so completions and man pages cannot be made by it." \
            "Run this for $(uname -m)-unknown-linux-gnu first."
    fi
    cp -r "$pages/." "$stage/share"
    # The documents name each other by these paths.
    cp -r --parents README.md LICENSE .env.example docs deploy "$documents"
    find "$stage" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
}

# Files alone: unpacked over /usr/local, it leaves the directories there as they are.
pack_tar() {
    find "$stage" -type f -printf '%P\n' | LC_ALL=C sort |
        tar --create --directory "$stage" --no-recursion --files-from=- --owner=0 --group=0 --numeric-owner \
            --mode=u=rwX,go=rX --mtime="@$SOURCE_DATE_EPOCH" --transform "s,^,$1/," |
        gzip --best --no-name >"$dist/$1.tar.gz"
}

pack_deb() {
    cargo-deb deb --quiet --no-build --no-strip --target "$target" --output "$dist"
}

# The program alone. maturin says whether it keeps to manylinux_2_28; it packs the one with symbols, so the
# other takes its place.
pack_wheel() {
    local unpacked=$dist/unpacked
    rm -rf "$unpacked" "$dist"/*"$platform.whl"
    mkdir "$unpacked"
    # maturin's own --zig has other flags, with which RocksDB would be compiled once more.
    cat >"$unpacked/cargo" <<'WRAPPER'
#!/usr/bin/env bash
[[ $1 == rustc ]] || exec cargo "$@"
exec cargo-zigbuild "${@/#$DIST_TARGET/$DIST_TARGET.$DIST_GLIBC}"
WRAPPER
    chmod +x "$unpacked/cargo"
    DIST_TARGET=$target DIST_GLIBC=$glibc CARGO=$unpacked/cargo maturin build --quiet --profile release --locked \
        --target "$target" --compatibility manylinux_2_28 --auditwheel check --out "$unpacked/with-symbols"
    wheel unpack --dest "$unpacked/wheel" "$unpacked"/with-symbols/*.whl >/dev/null
    install -m 755 "$stage/bin/events-backfill" "$unpacked"/wheel/*/*.data/scripts/events-backfill
    wheel pack --dest-dir "$dist" "$unpacked"/wheel/* >/dev/null
    rm -r "$unpacked"
}

list_parts() {
    cargo-cyclonedx cyclonedx --quiet --format json --spec-version 1.5 --target "$target" \
        --override-filename "$1.cdx"
    mv "$1.cdx.json" "$dist/$1.cdx.json"
}

scripts/install-prerequisites.sh
require_target
install_tools
build
version=$(cargo pkgid --offline | sed 's/.*[#@]//')
name=events-backfill-$version-$target
mkdir -p "$dist"
lay_out "$name"
pack_tar "$name"
pack_deb
pack_wheel
list_parts "$name"
(cd "$dist" && sha256sum -- *.tar.gz *.deb *.whl *.debug *.cdx.json >SHA256SUMS)
say "Made in $dist:"
(cd "$dist" && ls -l -- *.tar.gz *.deb *.whl *.debug *.cdx.json SHA256SUMS) >&2
