import subprocess
import sys

import pytest

PROBE = """
import resource, sys, torch
from embedding.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(12_000_000)  # beyond the 32 MiB at which glibc stops adapting by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(min(faults() for _ in range(5)))  # once the heap has found its size
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_the_kernel_clears_no_page_twice() -> None:
    def faults(mode: str) -> int:
        done = subprocess.run([sys.executable, "-c", PROBE, mode], capture_output=True, text=True, check=True)
        return int(done.stdout)

    default = faults("default")
    assert default > 0
    assert faults("keep") < default / 5  # how many there are by default depends on the kernel's page size
