"""Speed beside peers and physical limits: a table of cases, and one runner for `pytest benchmarks/` and `prunefuse bench`."""
