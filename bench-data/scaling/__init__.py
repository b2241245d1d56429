"""How long a larger month takes on larger machines, computed from what the benchmark measured."""
