"""`eyas merge` on model folders: the greedy soup takes what helps on a suite and leaves what hurts."""

from pathlib import Path

import pytest
import torch

from embedding.embedder import Embedder

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


def test_a_greedy_soup_without_a_suite_is_refused(models: tuple[str, str, str]) -> None:
    result = eyas("merge", *models, "--method", "greedy", "--out", "soup")
    assert result.exit_code == 2
    assert "give it something to evaluate on" in " ".join(result.output.split())
    assert not Path("soup").exists()
