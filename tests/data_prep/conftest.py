"""Real text for the tests of data preparation: modules of the standard library, laid out as an installation."""

import shutil
import sysconfig
from pathlib import Path

import pytest

from data_prep.docstrings import Docstring
from data_prep.harvest import harvest
from data_prep.teacher import TeacherConfig, load_teacher
from embedding.embedder import Embedder

FOLDERS = ["json", "logging", "email"]
FILES = ["argparse", "shutil", "textwrap", "inspect", "pathlib", "typing", "statistics", "subprocess", "threading"]
FILES += ["random", "decimal", "fractions", "zipfile"]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages whose code and docstrings are those of the standard library."""
    library = Path(sysconfig.get_paths()["stdlib"])
    root = tmp_path_factory.mktemp("site packages")
    for name in (*FOLDERS, *(f"{name}.py" for name in FILES)):
        source = library / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():  # some became packages in later versions
            shutil.copy(source, root / name)
    return root


@pytest.fixture(scope="session")
def teacher_config() -> TeacherConfig:
    return TeacherConfig(max_tokens=48)


@pytest.fixture(scope="session")
def teacher(teacher_config: TeacherConfig) -> Embedder:
    return load_teacher(teacher_config)


@pytest.fixture(scope="session")
def real_texts(site: Path) -> list[Docstring]:
    """Docstrings of that folder."""
    return harvest(400, roots=[site], workers=1).train
