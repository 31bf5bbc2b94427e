"""What the product imports is what its package asks for: nothing is there only because something else brought it."""

import ast
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
ELSEWHERE = {"bitsandbytes": "bitsandbytes", "ray": "ray"}
"""Distributions of imports that need not be installed where the tests run."""


def imported(package: str) -> set[str]:
    """The top-level names of other people's packages that a package of ours imports, at once or later."""
    names: set[str] = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module)
    tops = {name.partition(".")[0] for name in names}
    return tops - set(sys.stdlib_module_names) - set(PACKAGES)


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "configs"])
def test_every_import_is_asked_for(package: str) -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    product = [words for extra, found in extras.items() if extra != "dev" for words in found]
    asked = {canonicalize_name(Requirement(words).name) for words in [*PROJECT["project"]["dependencies"], *product]}
    installed = packages_distributions()
    found = imported(package)
    assert len(found) > 4, "reads the files"
    missing = [
        name
        for name in sorted(found)
        if not asked & {canonicalize_name(known) for known in installed.get(name, [ELSEWHERE.get(name, "nothing")])}
    ]
    assert not missing, f"{package}: imported, and not in pyproject.toml: {', '.join(missing)}"


def test_every_pin_can_be_installed_on_the_oldest_python_that_is_allowed() -> None:
    """`soupsieve==4.1.3` asked for 3.11.5, and `make` ended with a conflict on Debian 12, whose Python is 3.11.2."""
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=") + ".0"
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line).name for line in lines if line.strip() and not line.startswith("#")]
    asked = {}
    for name in pins:
        try:
            asked[name] = metadata(name).get("Requires-Python") or ""
        except PackageNotFoundError:
            continue  # of an extra that is not installed here
    assert len(asked) > 50
    assert not {name: words for name, words in asked.items() if oldest not in SpecifierSet(words)}
