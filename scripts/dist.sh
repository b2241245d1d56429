#!/usr/bin/env bash
# Builds a release for Linux with glibc 2.28 or newer in target/dist:
#
#   events-backfill-VERSION-TARGET.tar.gz   the program, completions, man pages, documents; for /usr/local
#   events-backfill-VERSION-TARGET.debug    its debug symbols, for gdb: put it beside the program
#   events-backfill_VERSION-1_ARCH.deb      the same for Debian and Ubuntu
#   events_backfill-VERSION-….whl           the program alone, for pip and pipx
#   events-backfill-VERSION-TARGET.cdx.json its dependencies, as CycloneDX (SBOM)
#   SHA256SUMS                              checksums of all of them
#
# DIST_TARGET is x86_64-unknown-linux-gnu (the default) or aarch64-unknown-linux-gnu. The latter's program
# cannot run here, so its completions and man pages come from an earlier build for x86-64.
#
# The first time, clang compiles RocksDB for that glibc: 12 minutes or more on two cores. Missing tools are
# installed: zig, maturin, cargo-deb and cargo-cyclonedx in their own directory, the rest with apt-get.
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

# The cross-compilation must not pick up a RocksDB compiled for this machine.
unset ROCKSDB_LIB_DIR ROCKSDB_INCLUDE_DIR ROCKSDB_STATIC ROCKSDB_COMPILE LZ4_LIB_DIR

case $target in
    x86_64-unknown-linux-gnu) platform=manylinux_2_28_x86_64 binutils='' binutils_package=binutils ;;
    aarch64-unknown-linux-gnu)
        platform=manylinux_2_28_aarch64
        binutils=aarch64-linux-gnu- binutils_package=binutils-aarch64-linux-gnu
        # arm64 kernels have pages of 4, 16 or 64 KiB, and jemalloc's own must not be smaller.
        export JEMALLOC_SYS_WITH_LG_PAGE=16
        ;;
    *) fail "DIST_TARGET is '$target'. Use x86_64-unknown-linux-gnu or aarch64-unknown-linux-gnu." ;;
esac

# The same commit makes the same files at any time.
if [[ -z ${SOURCE_DATE_EPOCH:-} ]]; then
    SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.lock)
    export SOURCE_DATE_EPOCH
fi

# install_package COMMAND PACKAGE: installs the package with apt-get, unless the command exists.
install_package() {
    local as_root=()
    have "$1" && return
    have apt-get || fail "$1 is missing. Install it with this system's package manager, then run this again."
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
        say "Creating a directory for the release tools: $tools"
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

# Rust's standard library for the target comes from rustup, or with the compiler.
require_target() {
    [[ -d $(rustc --print target-libdir --target "$target") ]] && return
    have rustup || fail "Rust's standard library for $target is missing. Install it (rustup target add" \
        "$target), then run this again."
    say "Installing with rustup: Rust's standard library for $target"
    rustup target add "$target" >&2
}

# Builds the program, and the demo's server for the same glibc to check it with.
build() {
    # By default zig adds debug symbols, hundreds of megabytes for RocksDB. These variables replace the C++
    # flags of .cargo/config.toml, so its other flags are repeated.
    local cxx_flags=-g0
    [[ $target != x86_64-* ]] || cxx_flags+=' -msse4.2'
    export "CFLAGS_${target//-/_}=-g0" "CXXFLAGS_${target//-/_}=$cxx_flags"
    say "Building for $target and glibc $glibc"
    cargo-zigbuild zigbuild --release --locked --target "$target.$glibc" \
        --bins --example embedded_clickhouse
}

# Lays out the content of the packages as below /usr/local: bin and share.
lay_out() {
    local name=$1 pages=$dist/share documents=$stage/share/doc/events-backfill
    rm -rf "$stage"
    mkdir -p "$stage/bin" "$documents"

    # Debuggers find the symbols by their file name, beside the program.
    "${binutils}objcopy" --only-keep-debug --compress-debug-sections \
        "$built/events-backfill" "$dist/$name.debug"
    chmod 644 "$dist/$name.debug"
    "${binutils}strip" --strip-all -o "$stage/bin/events-backfill" "$built/events-backfill"
    "${binutils}objcopy" --add-gnu-debuglink="$dist/$name.debug" "$stage/bin/events-backfill"

    if [[ $target == "$(uname -m)-unknown-linux-gnu" ]]; then
        rm -rf "$pages"
        "$stage/bin/events-backfill" generate "$pages"
    elif [[ ! -d $pages ]]; then
        fail "A program for $target cannot run here to write its completions and man pages." \
            "Run this with DIST_TARGET=$(uname -m)-unknown-linux-gnu first."
    fi
    cp -r "$pages/." "$stage/share"
    # The documents link to each other by these paths.
    cp -r --parents README.md LICENSE .env.example docs deploy "$documents"
    find "$stage" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
}

# Only files: unpacked over /usr/local, the archive does not change the directories there.
pack_tar() {
    find "$stage" -type f -printf '%P\n' | LC_ALL=C sort |
        tar --create --directory "$stage" --no-recursion --files-from=- --owner=0 --group=0 --numeric-owner \
            --mode=u=rwX,go=rX --mtime="@$SOURCE_DATE_EPOCH" --transform "s,^,$1/," |
        gzip --best --no-name >"$dist/$1.tar.gz"
}

pack_deb() {
    cargo-deb deb --quiet --no-build --no-strip --target "$target" --output "$dist"
}

# Packs only the program. maturin checks that it complies with manylinux_2_28, but packs it with symbols, so
# the stripped one replaces it.
pack_wheel() {
    local unpacked=$dist/unpacked
    rm -rf "$unpacked" "$dist"/*"$platform.whl"
    mkdir "$unpacked"
    # maturin's own --zig uses other flags, which would compile RocksDB again.
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
    # It lists the parts of every package of the workspace.
    rm -f "examples/embedded-clickhouse/$1.cdx.json"
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
say "Written to $dist:"
(cd "$dist" && ls -l -- *.tar.gz *.deb *.whl *.debug *.cdx.json SHA256SUMS) >&2
