"""The fault benchmark at its smallest size."""

import pytest

from .conftest import smoke


@pytest.mark.timeout(600)
def test_no_fault_loses_or_changes_a_vector() -> None:
    result = smoke("vectors_faults")
    assert (result["kills"], result["lost"], result["wrong"]) == (2, 0, 0)
    assert result["damaged_found"] == 2
