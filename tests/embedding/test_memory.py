import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from embedding import memory

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


def test_a_control_group_with_less_memory_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    whole = memory.available_memory()
    assert 0.5 < whole / psutil.virtual_memory().available < 2
    own = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
    folder = tmp_path / own
    folder.mkdir(parents=True, exist_ok=True)
    for limit, expected in (("3000000", 3e6 - 2e6 + 5e5), ("max", None)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("2000000\n")
        (folder / "memory.stat").write_text("anon 1500000\ninactive_file 500000\nslab 7\n")
        found = memory.available_memory()
        assert found == expected if expected else found > 1e8
