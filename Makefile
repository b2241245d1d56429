# Everything uses the release profile: every other profile would build RocksDB from source again.

.DEFAULT_GOAL := help
.PHONY: help prerequisites prerequisites-of-tests build demo test test-engine lint bench bench-large bench-parts scale reference \
	pictures dist test-dist test-deploy clean

target := $(or $(CARGO_TARGET_DIR),target)

# bindgen finds libclang through the dynamic linker, or through LIBCLANG_PATH if the library is only in
# the directory of its LLVM version. Looked up late, since `prerequisites` may just have installed it.
find_libclang = ls -d /usr/lib/llvm-*/lib/libclang.so* 2>/dev/null | sort -V | tail -n 1 | xargs -r dirname
libclang_path = $(shell PATH="$$PATH:/sbin:/usr/sbin"; ldconfig -p 2>/dev/null | grep -q libclang || $(find_libclang))
cargo = $(if $(LIBCLANG_PATH),,$(addprefix LIBCLANG_PATH=,$(libclang_path))) cargo

# The tests start their own ClickHouse from this library, unless CLICKHOUSE_BINARY is set.
clickhouse_library = library="$${CLICKHOUSE_LIBRARY:-$$(scripts/fetch-clickhouse.sh)}" && \
	CLICKHOUSE_LIBRARY="$$library"

# What --engine clickhouse refuses with a sentence (tests/integration/engine.rs).
refused = --skip metadata_as_a_json_column --skip metadata_in_a_json_column --skip without_remote_lookups
# What it counts differently (docs/limits.md), and tests that need a month to be half written at some moment.
counted = --skip a_run_over_a_living_month_adds_the_history_and_nothing_else \
	--skip a_restart_that_failed_before_events_core --skip what_langfuse_has_begun_to_write_since

# Of what both must pass, what compares all events after versions, live rows and kills.
versions_and_kills = live::an_observation_is_one_event live::a_month_that_langfuse_has_written live::a_run_killed \
	live::a_server_killed live::a_run_over_a_living_month_that_is_killed live::what_changed_within_the_last_hour \
	live::an_insert_whose_answer_is_lost live::what_is_wanted_of_a_living_month

announce_rocksdb = ls -d $(target)/release/build/librocksdb-sys-* >/dev/null 2>&1 || \
	echo "The first build compiles RocksDB: up to half an hour on two cores, once."

help: ## list the targets
	@echo "Targets:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 18

prerequisites: ## install what the build and the demo need
	@scripts/install-prerequisites.sh

prerequisites-of-tests:
	@scripts/install-prerequisites.sh --tests

build: prerequisites ## build target/release/events-backfill
	@$(announce_rocksdb)
	$(cargo) build --release --locked

demo: prerequisites ## backfill and verify three generated months in a private ClickHouse
	@$(announce_rocksdb)
	@$(cargo) build --release --locked --package events-backfill --package embedded-clickhouse
	@scripts/demo.sh

test: prerequisites-of-tests ## run all tests against a real ClickHouse
	@$(announce_rocksdb)
	@$(clickhouse_library) $(cargo) test --release --locked
	@echo "Once more, with --engine clickhouse: what both engines must write alike."
	@$(clickhouse_library) TEST_ENGINE=clickhouse $(cargo) test --release --locked --test integration -- \
		specification:: root_spans:: experiments:: $(refused)
	@$(clickhouse_library) TEST_ENGINE=clickhouse $(cargo) test --release --locked --test faults -- $(versions_and_kills)

test-engine: prerequisites-of-tests ## run all tests that both engines must pass with --engine clickhouse
	@$(announce_rocksdb)
	@$(clickhouse_library) TEST_ENGINE=clickhouse $(cargo) test --release --locked --test integration --test faults -- \
		specification:: root_spans:: experiments:: profiles:: replicated:: clusters:: live:: $(refused) $(counted)

test-deploy: prerequisites ## check deploy/ and .github/ with their own tools, and run the deployments; needs root
	@$(announce_rocksdb)
	@$(cargo) build --release --locked --bins --example embedded_clickhouse
	@$(clickhouse_library) scripts/test-deploy.sh

lint: prerequisites ## check the formatting, and run clippy
	@$(announce_rocksdb)
	$(cargo) fmt --check
	$(cargo) clippy --release --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(cargo) doc --release --no-deps --document-private-items --locked

deny: ## check the licences, sources and duplicates of dependencies, and known weaknesses where GitHub is reached
	@scripts/deny.sh

fuzz: prerequisites ## fuzz what is read from ClickHouse and from disk, FUZZ_SECONDS for each target
	@$(announce_rocksdb)
	@$(patsubst cargo,scripts/fuzz.sh,$(cargo))

bench: prerequisites ## benchmark against other tools; BENCH_OBSERVATIONS and other variables set the size
	@$(announce_rocksdb)
	@$(cargo) build --release --locked --bins --example embedded_clickhouse
	@bench-data/bench.py

bench-large: export BENCH_PARTS = large
bench-large: bench ## benchmark 100 million traces in 1 GiB of memory; needs root, hours and tens of GB of disk

bench-parts: prerequisites ## benchmark the hot code paths, without a server
	@$(announce_rocksdb)
	$(cargo) bench --locked --bench hot_parts

scale: ## regenerate docs/scale.md from bench-data/benchmark-figures.json
	@bench-data/scale.py

reference: prerequisites ## regenerate docs/reference.md from the code
	@$(announce_rocksdb)
	@reference=$$(mktemp) && trap 'rm -f "$$reference"' EXIT && \
		$(cargo) run --quiet --release --locked --example reference >"$$reference" && \
		cat "$$reference" >docs/reference.md

pictures: prerequisites ## regenerate docs/terminal.svg from a run, and docs/memory.svg from the last `make bench`
	@$(announce_rocksdb)
	@$(cargo) build --release --locked --bins --example embedded_clickhouse
	@$(clickhouse_library) scripts/terminal-svg.py docs/terminal.svg
	@bench-data/bench.py --chart docs/memory.svg

dist: prerequisites ## build and check a release in target/dist: tar.gz, deb, wheel, SBOM
	@echo "This also compiles RocksDB for an old glibc: 12 minutes or more on two cores, once."
	@$(patsubst cargo,scripts/dist.sh,$(cargo))
	@$(MAKE) --no-print-directory test-dist

test-dist: ## check target/dist: install, run and remove the packages
	@$(clickhouse_library) scripts/check-dist.sh

clean: ## remove all build results, including RocksDB
	$(cargo) clean
