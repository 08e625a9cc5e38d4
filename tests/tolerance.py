"""The only tolerance policy is bench/parity.py's: benchmarks check by it what they time, and the tests everything else."""

from bench.parity import FLOAT64, SLACK, assert_as_good_as_naive, assert_same_in_float64, relative_error

__all__ = ["FLOAT64", "SLACK", "assert_as_good_as_naive", "assert_same_in_float64", "relative_error"]
