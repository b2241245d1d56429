"""The benchmark of events-backfill against its peers. See ../bench.py."""
