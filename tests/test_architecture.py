"""The rules of the house that can be read off the source: layers, circles, size, where collectives live."""

import ast
import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {"embedding": 0, "data_prep": 1, "eval": 1, "train": 2, "launch": 3}
MAX_LINES = 400


def source_files() -> list[Path]:
    return [path for package in LAYERS for path in sorted((ROOT / package).rglob("*.py"))]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(path: Path, names: frozenset[str], nodes: list[ast.AST]) -> set[str]:
    """Modules of this project that the given nodes import; `from package import module` counts as the module."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the package's name"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in names else node.module)
    return {name for name in found if name.split(".")[0] in LAYERS}


def all_modules() -> dict[str, Path]:
    return {module_name(path): path for path in source_files()}


def test_the_packages_are_there() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in source_files()} == set(LAYERS)


def test_imports_follow_the_layers() -> None:
    modules = all_modules()
    wrong = []
    for name, path in modules.items():
        package = name.split(".")[0]
        for other in imported(path, frozenset(modules), list(ast.walk(tree(path)))):
            target = other.split(".")[0]
            if target != package and LAYERS[target] >= LAYERS[package]:
                wrong.append(f"{name} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_no_circle_among_modules() -> None:
    modules = all_modules()
    edges = {
        name: imported(path, frozenset(modules), list(ast.walk(tree(path)))) & set(modules) - {name}
        for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "circle: " + " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in modules:
        visit(name, ())


def test_no_file_is_too_long() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in source_files()}
    assert not {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > MAX_LINES}


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a chain of attributes, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def collectives(path: Path) -> list[int]:
    """Lines that reach for torch.distributed, or for accelerate's gather and reduce; starting processes is neither."""
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            hit = any(alias.name.startswith("torch.distributed") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            starts = re.match(r"torch\.distributed\.(run|launcher|elastic)\b", module)
            hit = (module.startswith("torch.distributed") and not starts) or (
                module == "torch" and any(alias.name == "distributed" for alias in node.names)
            )
        elif isinstance(node, ast.Attribute):
            hit = dotted(node) == "torch.distributed" or re.fullmatch(
                r"(self\.)?accelerator\.(gather|gather_for_metrics|reduce|pad_across_processes)", dotted(node)
            )
        else:
            hit = False
        if hit:
            found.append(node.lineno)
    return found


def test_collectives_live_in_one_file() -> None:
    allowed = ROOT / "train" / "distributed.py"
    places = {str(path.relative_to(ROOT)): collectives(path) for path in source_files() if path != allowed}
    assert not {path: lines for path, lines in places.items() if lines}


def test_no_error_is_swallowed() -> None:
    wrong = []
    for path in source_files():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ExceptHandler):
                bare = node.type is None
                blind = isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"}
                empty = all(isinstance(statement, ast.Pass) for statement in node.body)
                if bare or (blind and empty):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong


def test_no_notes_to_self() -> None:
    words = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")
    wrong = []
    for path in source_files():
        text = path.read_text(encoding="utf-8")
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING) and words.search(token.string):
                wrong.append(f"{path.relative_to(ROOT)}:{token.start[0]}")
    assert not wrong


@pytest.mark.parametrize(
    "code",
    [
        "import torch.distributed as dist",
        "from torch.distributed import all_reduce",
        "from torch import distributed",
        "import torch\ntorch.distributed.barrier()",
        "accelerator.gather(x)",
        "self.accelerator.reduce(x)",
    ],
)
def test_the_search_for_collectives_finds_them(code: str, tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(code)
    assert collectives(path)
