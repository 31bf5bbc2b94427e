import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep import harvest as room
from data_prep.clean import normal_form
from data_prep.docstrings import Module, read_docstrings, split_docstring
from data_prep.harvest import PER_MODULE, find_modules, harvest


def test_summary_and_body() -> None:
    wrapped = "Return the first\nline of it all.\n\nThe rest says more\nabout the matter.\n\nAnd ends here."
    expected = "Return the first line of it all.", "The rest says more\nabout the matter.\n\nAnd ends here."
    assert split_docstring(wrapped) == expected
    assert split_docstring("One line that stands alone.") is None
    assert split_docstring("Too short.\n\nThe body has more than five words.") is None
    assert split_docstring("A summary of four words.\n\nNot enough here.") is None


SOURCE = '''"""A module about nothing.

It is here so that something can be read."""
x = "def fake(): no docstring at all"
if x:
    class A:
        r"""A class of its own kind.

        Raw, with a \\d and an é in the second paragraph."""
        async def b(self):
            """Wait for something to happen.

            It may take quite a long time."""
            def inner():
                """Inside a method there is more.

                And it is found there as well."""
try:
    def c(): "Not a pair, one line only"
except ValueError:
    raise
'''


def test_docstrings_of_a_module(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text(SOURCE, encoding="utf-8")
    found = read_docstrings(Module("pkg.m", "pkg", str(path)))
    assert found is not None
    assert [pair.name for pair in found] == ["", "A", "A.b", "A.b.inner"]
    assert found[1].body == "Raw, with a \\d and an é in the second paragraph."
    assert {(pair.package, pair.module) for pair in found} == {("pkg", "pkg.m")}


def test_files_that_are_not_python_are_counted(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "template.py").write_text('"""A template\n\nof some other language."""\n{{ name }} = !\n')
    (tmp_path / "nulls.py").write_bytes(b'"""A\n\nb"""\0')
    latin = '# coding: latin-1\n"""Übrig bleibt ein Satz.\n\nMit fünf weiteren Wörtern hier."""'
    (tmp_path / "latin.py").write_bytes(latin.encode("latin-1"))
    found = harvest(roots=[tmp_path], workers=1)
    assert found.counts["modules not parsable"] == 2
    assert found.counts["modules read"] == 4
    assert "Übrig bleibt ein Satz." in {pair.summary for pair in found.train}


def test_module_names(tmp_path: Path) -> None:
    names = ["a/__init__.py", "a/b.py", "a/b/__init__.py", "c.py", "__init__.py"]
    for name in (*names, "a/tests/test_b.py", "a/__pycache__/d.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [(m.name, m.package) for m in find_modules([tmp_path])] == [("a", "a"), ("a.b", "a"), ("c", "c")]


def test_the_order_of_the_file_system_and_the_number_of_processes_do_not_matter(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, Any] = {"share": 0.3, "heldout": 40, "roots": [site]}
    plain = harvest(150, workers=1, **sizes)
    assert len(plain.train) == 150
    walk = os.walk

    def shuffled(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for folder, folders, files in walk(top):
            random.Random(folder).shuffle(folders)
            random.Random(folder).shuffle(files)
            yield folder, folders, files

    monkeypatch.setattr(room.os, "walk", shuffled)
    assert harvest(150, workers=3, **sizes) == plain
    assert harvest(150, seed=1, workers=1, **sizes).train != plain.train


def test_a_sample_is_the_beginning_of_a_larger_one(site: Path) -> None:
    small, large = (harvest(limit, share=0.3, heldout=40, roots=[site], workers=1) for limit in (60, 120))
    assert large.train[:60] == small.train
    assert large.heldout == small.heldout


def test_no_held_out_text_is_trained_on(tmp_path: Path) -> None:
    body = "Words that are found on both sides of the border."
    for number in range(60):
        rest = body if number % 2 else f"Other words, found only in {number}."
        text = f'"""Summary number {number} of the module.\n\n{rest}"""'
        (tmp_path / f"m{number}.py").write_text(text if number % 4 else text.upper())
    found = harvest(share=0.3, heldout=100, roots=[tmp_path], workers=1)
    assert found.heldout
    held = {normal_form(text) for pair in found.heldout for text in (pair.summary, pair.body)}
    assert normal_form(body) in held
    assert found.counts["repeats a held-out text"] > 10
    assert held.isdisjoint(normal_form(text) for pair in found.train for text in (pair.summary, pair.body))
    assert {pair.module for pair in found.heldout}.isdisjoint(pair.module for pair in found.train)


def test_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"copy{number}.py").write_text(SOURCE, encoding="utf-8")
    found = harvest(roots=[tmp_path], workers=1)
    assert len(found.train) == 4
    assert found.counts["duplicate"] == 16


def test_no_module_fills_the_held_out_side(site: Path) -> None:
    found = harvest(10, share=0.5, heldout=200, roots=[site], workers=1)
    assert max(Counter(pair.module for pair in found.heldout).values()) <= PER_MODULE
    assert len(found.heldout) > PER_MODULE


def test_the_installed_packages_of_this_machine() -> None:
    found = harvest(300, share=0.05, heldout=60)
    assert len(found.train) == 300
    assert len(found.heldout) == 60
    assert found.counts["modules"] > 1000
    assert len({pair.package for pair in found.train}) > 3


def test_a_dead_worker_is_reported(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="died"):
        harvest(10, roots=[site], workers=1)


def test_what_is_held_out_is_the_same_for_every_seed_and_no_seed_reads_it_first(site: Path) -> None:
    sizes = {"roots": [site], "workers": 1}
    held = [{pair.module for pair in harvest(5, seed=s, share=0.4, heldout=10_000, **sizes).heldout} for s in range(3)]
    assert held[0] == held[1] == held[2] != set()
    for seed in range(1, 6):  # of a source that holds nothing out itself
        read = {pair.module for pair in harvest(300, seed=seed, **sizes).train}
        assert len(read) > 3
        assert not read <= held[0]
