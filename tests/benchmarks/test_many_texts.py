"""The benchmark of a pass over very many texts at its smallest size."""

import pytest

from .conftest import smoke


@pytest.mark.timeout(600)
def test_memory_is_counted_and_every_vector_is_there() -> None:
    result = smoke("many_texts")
    assert result["texts"] == 20_000
    assert 0 < result["peak_gib"] < 4
    assert result["index_bytes_per_text"] == 16
