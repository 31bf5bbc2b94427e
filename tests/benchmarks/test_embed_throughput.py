"""The throughput benchmark of the pass at its smallest size."""

import pytest

from .conftest import smoke


@pytest.mark.timeout(600)
def test_it_runs_and_both_sides_give_the_same_vectors() -> None:
    result = smoke("embed_throughput")
    assert result["difference"] <= 1e-4
    assert result["key_bytes"] == 16
    rates = ("ratio", "gemm_fraction", "write_gbps", "disk_gbps", "read_gbps", "read_rows")
    rates += ("distill_overhead", "teacher_overhead")
    assert all(result[key] > 0 for key in rates)
