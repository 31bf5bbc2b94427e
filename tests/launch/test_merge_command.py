"""`eyas merge` on model folders: the greedy soup takes what helps on a suite and leaves what hurts."""

from pathlib import Path

import pytest
import torch

from embedding.embedder import Embedder
from train.merge import mean_of, slerp_of

from .conftest import eyas


@pytest.fixture
def models(finished: Path) -> tuple[str, str, str]:
    """A model, the same once more, and one whose weights are ruined by noise; `general` is evaluation data."""
    good, ruined = Embedder.from_pretrained("runs/tiny/model"), Embedder.from_pretrained("runs/tiny/model")
    with torch.no_grad():
        for parameter in ruined.parameters():
            parameter.add_(torch.randn_like(parameter))
    good.save_pretrained("same")
    ruined.save_pretrained("ruined")
    (folder,) = Path("runs/cache/data").glob("*/heldout")
    folder.rename("general")
    return "ruined", "runs/tiny/model", "same"


def test_a_greedy_soup_by_command(models: tuple[str, str, str]) -> None:
    result = eyas("merge", *models, "--method", "greedy", "--suite", "general", "--out", "soup")
    assert result.exit_code == 0, result.output
    assert "greedy soup of 2 of 3 (1, 2)" in result.output
    soup, good = Embedder.from_pretrained("soup"), Embedder.from_pretrained("same")
    for name, tensor in good.state_dict().items():
        torch.testing.assert_close(soup.state_dict()[name], tensor)


def test_slerp_by_command_walks_the_arc(models: tuple[str, str, str]) -> None:
    ruined, good, _ = models
    result = eyas("merge", good, ruined, "--method", "slerp", "--weight", "3", "--weight", "1", "--out", "between")
    assert result.exit_code == 0, result.output
    ends = [dict(Embedder.from_pretrained(name).state_dict()) for name in (good, ruined)]
    expected, found = slerp_of(ends, [3, 1]), Embedder.from_pretrained("between").state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)
    assert any(not torch.allclose(found[name], mean) for name, mean in mean_of(ends, [3, 1]).items())


def test_models_of_another_make_are_refused(models: tuple[str, str, str]) -> None:
    other = Embedder.from_pretrained("same")
    other.pooling = "cls"
    other.save_pretrained("other")
    result = eyas("merge", "same", "other", "--out", "merged")
    assert result.exit_code == 2
    assert 'other: of another make than same (pooling: expected "mean", found "cls")' in " ".join(result.stderr.split())
    assert not Path("merged").exists()


def test_a_greedy_soup_without_a_suite_is_refused(models: tuple[str, str, str]) -> None:
    result = eyas("merge", *models, "--method", "greedy", "--out", "soup")
    assert result.exit_code == 2
    assert "give it something to evaluate on" in " ".join(result.output.split())
    assert not Path("soup").exists()


def test_a_folder_that_is_no_model_is_not_replaced(models: tuple[str, str, str]) -> None:
    result = eyas("merge", "same", "runs/tiny/model", "--out", "runs")
    assert result.exit_code == 2
    assert "--out runs: it is there and no model folder" in " ".join(result.stderr.split())
    assert Path("runs/tiny/model").is_dir()
    assert eyas("merge", "same", "runs/tiny/model", "--out", "ruined").exit_code == 0, "a model may be replaced"
