"""What malloc does with freed host memory."""

import ctypes
import subprocess
import sys

import pytest
import runs

STEPS = """
import resource, torch
from rdn_fast import devices
devices.keep_freed_memory()
for step in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    parts = [torch.ones(1 << 20) for _ in range(8)]  # 4 MB each
    del parts
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="malloc is not glibc's")
def test_memory_that_was_freed_is_used_again_without_page_faults():
    done = subprocess.run([sys.executable, "-c", STEPS], check=True, capture_output=True, text=True, cwd=runs.ROOT)
    assert int(done.stdout) < 100  # 8,192 pages of 4 kB otherwise
