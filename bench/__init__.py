"""Benchmarks that prove or disprove rdn_fast's claims: `python -m bench.run 1p|8p|all`, `python -m bench.report`."""
