"""Training on 1, 2 and 3 real processes ends in the same place; each way to train says which code really ran."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.ranks import TOLERANCE, WORLDS, equality, write_small_inputs


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ranks")
    write_small_inputs(Path(folder))
    return equality(str(folder))


@pytest.mark.parametrize("name", TOLERANCE)
def test_the_result_does_not_depend_on_the_ranks(name: str, same: dict[str, Any]) -> None:
    assert same["differences"][name] <= TOLERANCE[name]


def test_the_steps_were_real_ones(same: dict[str, Any]) -> None:
    assert len(same["losses"]) == 20
    assert same["losses"][-1] < 0.9 * same["losses"][0]


def test_ddp_and_sharding_really_ran(same: dict[str, Any]) -> None:
    ddp = [ran for ran in same["ran"] if ran["way"] == "ddp"]
    assert [ran["ranks"] for ran in ddp] == list(WORLDS)
    assert {ran["wrapper"] for ran in ddp} == {"DistributedDataParallel"}
    sharded = [ran for ran in same["ran"] if ran["way"] == "fsdp"]
    assert [ran["ranks"] for ran in sharded] == [2, 3]
    for ran in sharded:
        assert ran["sharded"]
        assert ran["share"] == pytest.approx(1 / ran["ranks"], rel=0.01)
        # three groups of parameters (two layers and the rest), each reduced once a step however many chunks there are,
        # and the gradient of the gathered rows
        assert sum(n for name, n in ran["collectives"].items() if "reduce_scatter" in name) == (3 + 1) * 20
    assert {ran["backend"] for ran in same["ran"]} == {"gloo"}


def test_each_gradient_byte_is_sent_once(same: dict[str, Any]) -> None:
    assert same["bytes_reduced_per_gradient_byte"] == 1.0
