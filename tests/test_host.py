import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource
from cosdiff_jax import host
{call}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def touch():
    block = libc.malloc(ctypes.c_size_t(2**27))
    ctypes.memset(block, 1, 2**27)
    libc.free(block)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call):
    run = [sys.executable, "-c", FAULTS.format(call=call)]
    return int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_a_freed_block_is_not_cleared_again():
    by_default = faults("")
    assert by_default > 100
    assert faults("assert host.keep_memory()") < by_default / 10
