# Everything uses the release profile: RocksDB is built from source, which takes long, and each
# profile would build it once more.

.DEFAULT_GOAL := help
.PHONY: help prerequisites prerequisites-of-tests build demo test lint bench bench-large bench-parts scale reference \
	pictures dist test-dist test-deploy clean

target := $(or $(CARGO_TARGET_DIR),target)

# bindgen finds libclang through the dynamic linker, or through LIBCLANG_PATH where the library is
# only in the directory of its LLVM version. Looked up when it is used, since `prerequisites` may
# have just installed it.
find_libclang = ls -d /usr/lib/llvm-*/lib/libclang.so* 2>/dev/null | sort -V | tail -n 1 | xargs -r dirname
libclang_path = $(shell PATH="$$PATH:/sbin:/usr/sbin"; ldconfig -p 2>/dev/null | grep -q libclang || $(find_libclang))
cargo = $(if $(LIBCLANG_PATH),,$(addprefix LIBCLANG_PATH=,$(libclang_path))) cargo

# The tests start a ClickHouse of their own, from this library, unless CLICKHOUSE_BINARY is set.
clickhouse_library = library="$${CLICKHOUSE_LIBRARY:-$$(scripts/fetch-clickhouse.sh)}" && \
	CLICKHOUSE_LIBRARY="$$library"

announce_rocksdb = ls -d $(target)/release/build/librocksdb-sys-* >/dev/null 2>&1 || \
	echo "The first build includes RocksDB, which takes up to half an hour on two cores, once."

help: ## list these targets
	@echo "Targets:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 18

prerequisites: ## install what the build, the tests and the demo need
	@scripts/install-prerequisites.sh

prerequisites-of-tests:
	@scripts/install-prerequisites.sh --tests

build: prerequisites ## build target/release/events-backfill
	@$(announce_rocksdb)
	$(cargo) build --release --locked

demo: prerequisites ## backfill a generated month in a ClickHouse of its own, and show the result
	@$(announce_rocksdb)
	@$(cargo) build --release --locked --bins --example embedded_clickhouse
	@scripts/demo.sh

test: prerequisites-of-tests ## run all tests, against a real ClickHouse
	@$(announce_rocksdb)
	@$(clickhouse_library) $(cargo) test --release --locked

test-deploy: prerequisites ## check deploy/ and .github/ with their own tools, and run what is in them; needs root
	@$(announce_rocksdb)
	@$(cargo) build --release --locked --bins --example embedded_clickhouse
	@$(clickhouse_library) scripts/test-deploy.sh

lint: prerequisites ## check the formatting, and what the compiler and clippy have to say
	@$(announce_rocksdb)
	$(cargo) fmt --check
	$(cargo) clippy --release --all-targets --locked -- -D warnings

bench: prerequisites ## measure against the peers; BENCH_OBSERVATIONS and more set its size
	@$(announce_rocksdb)
	@$(cargo) build --release --locked --bins --example embedded_clickhouse
	@bench-data/bench.py

bench-large: export BENCH_PARTS = large
bench-large: bench ## measure with 100M traces in 1 GiB; needs root, much time and tens of GB of disk

bench-parts: prerequisites ## measure the hot parts alone, without a server
	@$(announce_rocksdb)
	$(cargo) bench --locked --bench hot_parts

scale: ## compute docs/scale.md again, from bench-data/benchmark-figures.json
	@bench-data/scale.py

reference: prerequisites ## make docs/reference.md again, from the code
	@$(announce_rocksdb)
	@reference=$$(mktemp) && trap 'rm -f "$$reference"' EXIT && \
		$(cargo) run --quiet --release --locked --example reference >"$$reference" && \
		cat "$$reference" >docs/reference.md

pictures: prerequisites ## draw docs/terminal.svg again from a run, and docs/memory.svg from the last `make bench`
	@$(announce_rocksdb)
	@$(cargo) build --release --locked --bins --example embedded_clickhouse
	@$(clickhouse_library) scripts/terminal-svg.py docs/terminal.svg
	@bench-data/bench.py --chart docs/memory.svg

dist: prerequisites ## make what a release consists of in target/dist, and check it: tar.gz, deb, wheel, SBOM
	@echo "RocksDB is compiled for an old glibc too, which takes 12 minutes or more on two cores, once."
	@$(patsubst cargo,scripts/dist.sh,$(cargo))
	@$(MAKE) --no-print-directory test-dist

test-dist: ## check what is in target/dist: install it, run it, remove it
	@$(clickhouse_library) scripts/check-dist.sh

clean: ## remove what was built, RocksDB included
	$(cargo) clean
