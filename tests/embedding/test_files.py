import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from embedding.files import (
    ABANDONED,
    content_key,
    content_keys,
    differences,
    fingerprint,
    in_bytes,
    new_folder,
    read_json,
    read_log,
    read_manifest,
    write_json,
    write_manifest,
    write_text,
)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")
    assert read_json(path) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "a").write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fail()
    assert list(tmp_path.iterdir()) == []
    for text in ("one", "two"):
        with new_folder(tmp_path / "out") as folder:
            (folder / "a").write_text(text)
    assert (tmp_path / "out" / "a").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_writer_left_goes_when_it_is_old(tmp_path: Path) -> None:
    names = (".out.0123abcd", ".out.0123abce.old", ".out.busy0000", ".out.0123abcf", ".outer.0123abcd", "out.0123abcd")
    for name in names:
        (tmp_path / name / "part").mkdir(parents=True)
        (tmp_path / name / "part" / "a").write_text("half")
    old = time.time() - ABANDONED - 1
    for file in (*tmp_path.rglob("*"), *tmp_path.iterdir()):
        os.utime(file, (old, old))
    (tmp_path / ".out.0123abcf" / "part" / "b").write_text("just now")
    with new_folder(tmp_path / "out"):
        pass
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"out", ".out.busy0000", ".out.0123abcf", ".outer.0123abcd", "out.0123abcd"}


@pytest.mark.parametrize("made_from", [None, {"data": 1}])
def test_of_folders_written_at_the_same_time_one_is_there_and_none_fails(
    made_from: dict[str, int] | None, tmp_path: Path
) -> None:
    writers = 4
    finished = threading.Barrier(writers, timeout=60)

    def write(path: Path) -> int:
        """Which folder this writer finds when it is done; 0: none."""
        with new_folder(path, made_from) as folder:
            write_manifest(folder, {"data": 1})
            finished.wait()
        try:
            return (path / "manifest.json").stat().st_ino
        except FileNotFoundError:
            return 0

    with ThreadPoolExecutor(writers) as pool:
        for turn in range(40):
            place = tmp_path / str(turn)
            found = set(pool.map(write, [place / "out"] * writers))
            assert [p.name for p in place.iterdir()] == ["out"]
            assert made_from is None or len(found) == 1, "whoever was first has opened it, and another took it away"
    other = {"data": 2}
    with new_folder(place / "out", other) as folder:
        write_manifest(folder, other)
    assert (read_manifest(place / "out") or {})["made_from"] == other, "what was made from something else is replaced"


def test_fingerprints_ignore_order_and_see_values() -> None:
    assert fingerprint({"a": 1, "b": [Path("x")]}) == fingerprint({"b": ["x"], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})
    with pytest.raises(TypeError, match="cannot fingerprint a set"):
        fingerprint({1, 2})


def test_manifests_and_what_differs(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    write_manifest(tmp_path, {"a": {"b": 1}}, rows=3)
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert manifest["rows"] == 3
    assert differences({"a": {"b": 2}, "c": 1}, manifest["made_from"]) == [
        "a.b: expected 2, found 1",
        "c: expected 1, found null",
    ]
    assert differences({"a": [{"b": 1}, 2]}, {"a": [{"b": 3}, 2]}) == ["a.0.b: expected 1, found 3"]
    assert differences({"a": [1]}, {"a": [1, 2]}) == ["a: expected [1], found [1,2]"]
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_manifest(tmp_path)


def test_a_log_is_read_by_step_without_the_line_that_a_kill_cut_short(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 2, "loss": 1.0}\n{"step": 1, "loss": 2.0}\n{"step": 3, "lo')
    assert read_log(log) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    log.write_text('{"step": 1}\n{"step"\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2 is not valid JSON"):
        read_log(log)


def test_content_keys_do_not_confuse_splits() -> None:
    assert content_key("ab", "c") != content_key("a", "bc")
    keys = content_keys(["p", "p", ""], ["x", "y", "x"])
    assert keys.shape == (3, 2)
    assert keys.dtype == np.uint64
    assert len(np.unique(keys, axis=0)) == 3
    assert keys[0].tobytes() == content_key("p", "x")


@pytest.mark.parametrize(
    "size, written",
    [(0, "0 B"), (999, "999 B"), (999.9, "1 kB"), (21.54e6, "21.5 MB"), (999.6e6, "1 GB"), (1.5e15, "1,500.0 TB")],
)
def test_sizes_have_three_digits(size: float, written: str) -> None:
    assert in_bytes(size) == written
