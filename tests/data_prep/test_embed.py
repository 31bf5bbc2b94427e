import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_prep import embed as room
from data_prep import units
from data_prep.build import DataConfig, prepare
from data_prep.embed import EmbedReport, embed_texts
from data_prep.tables import Texts
from data_prep.teacher import TeacherConfig, load_teacher, teacher_identity, vector_keys
from data_prep.vectors import VectorStore
from embedding.config import parse_config
from embedding.embedder import Embedder
from embedding.files import read_json, write_json
from embedding.instruction import BARE, Template
from embedding.layout import resolve_model

ROOT = Path(__file__).parents[2]
PAIRS = [(f"How does {verb} a {noun} work?", f"To {verb} the {noun}, be patient. " * length)
         for verb in ("open", "close", "move") for noun in ("door", "file", "window", "valve")
         for length in (1, 4, 12)]  # fmt: skip


def make_texts(folder: Path, pairs: list[tuple[str, str]], instruction: str = "Find the manual") -> Texts:
    folder.mkdir(exist_ok=True)
    lines = "".join(f'{{"q": "{query}", "a": "{answer}"}}\n' for query, answer in pairs)
    (folder / "x.jsonl").write_text(lines)
    source = {"kind": "jsonl", "path": str(folder / "x.jsonl"), "query": "q", "positive": "a"}
    source["instruction"] = instruction
    prepare(parse_config(DataConfig, {"sources": [source], "heldout": {"share": 0.0}}), folder / "data")
    return Texts.load(folder / "data" / "texts")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    return make_texts(tmp_path_factory.mktemp("data"), PAIRS)


def stored(report: EmbedReport, config: TeacherConfig, teacher: Embedder, texts: Texts) -> np.ndarray:
    store = VectorStore.open(report.store, teacher_identity(config, teacher), teacher.width)
    return store.rows(vector_keys(texts, teacher.template))


def test_vectors_are_those_of_the_teacher(
    texts: Texts, teacher: Embedder, teacher_config: TeacherConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "SHARD_TEXTS", 10)
    monkeypatch.setattr(room, "SHARD_TOKENS", 200)
    monkeypatch.setattr(units, "UNIT_TEXTS", 25)
    report = embed_texts(teacher_config, texts, tmp_path, progress=False, embedder=teacher)
    assert (report.computed, report.reused) == (len(texts), 0)
    expected = teacher.encode(texts.texts.to_pylist())
    np.testing.assert_allclose(stored(report, teacher_config, teacher, texts), expected, atol=1e-3)
    lengths = [len(ids) for ids in teacher.tokenize(texts.texts.to_pylist(), [""] * len(texts))]
    assert report.tokens == np.minimum(lengths, 48).sum()
    assert report.cut == np.sum(np.array(lengths) > 48) > 0
    rows = [int(path.name.split("-")[0]) for path in (report.store / "shards").iterdir()]
    assert sum(rows) == len(texts)
    assert max(rows) <= 10
    assert len(rows) > len(texts) / 10


def test_a_second_run_computes_nothing_and_new_texts_alone_are_computed(
    texts: Texts, teacher: Embedder, teacher_config: TeacherConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = embed_texts(teacher_config, texts, tmp_path, progress=False, embedder=teacher)
    files = {path: path.stat().st_mtime_ns for path in first.store.glob("shards/*")}
    with monkeypatch.context() as patch:
        patch.setattr(teacher, "encode_ids", lambda *_, **__: pytest.fail("the teacher ran again"))
        second = embed_texts(teacher_config, texts, tmp_path, progress=False, embedder=teacher)
    assert (second.computed, second.reused, second.tokens) == (0, len(texts), 0)
    assert files == {path: path.stat().st_mtime_ns for path in first.store.glob("shards/*")}
    more = make_texts(tmp_path / "more", [*PAIRS, ("A new question here?", "And its new answer.")])
    third = embed_texts(teacher_config, more, tmp_path, progress=False, embedder=teacher)
    assert (third.computed, third.reused) == (2, len(texts))
    other_task = make_texts(tmp_path / "task", PAIRS, instruction="Another task altogether")
    fourth = embed_texts(teacher_config, other_task, tmp_path, progress=False, embedder=teacher)
    assert fourth.computed == 0  # the teacher takes bare text: the task is not part of what it sees


def test_another_teacher_gets_its_own_store_and_the_reason_is_told(
    texts: Texts, teacher_config: TeacherConfig, tmp_path: Path
) -> None:
    first = embed_texts(teacher_config, texts, tmp_path, progress=False)
    assert first.note == ""
    prompted = TeacherConfig(max_tokens=48, template=Template(query="query: ", document=""))
    second = embed_texts(prompted, texts, tmp_path, progress=False)
    assert second.store != first.store
    assert (second.computed, second.reused) == (len(texts), 0)
    assert (
        second.note == 'a new store, since no existing one fits; nearest: template.query: expected "query: ", found ""'
    )


def test_a_prompt_is_part_of_the_key(texts: Texts) -> None:
    bare, prompted = vector_keys(texts, BARE), vector_keys(texts, Template())
    queries = np.array([role == "query" for role in texts.roles.to_pylist()])
    assert ((bare == prompted).all(axis=1) == ~queries).all()


def test_a_damaged_shard_is_computed_again(
    texts: Texts, teacher: Embedder, teacher_config: TeacherConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "SHARD_TEXTS", 10)
    first = embed_texts(teacher_config, texts, tmp_path, progress=False, embedder=teacher)
    before = stored(first, teacher_config, teacher, texts)
    victim = sorted((first.store / "shards").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:-20])
    second = embed_texts(teacher_config, texts, tmp_path, progress=False, embedder=teacher)
    assert second.computed == int(victim.name.split("-")[0])
    assert len(second.set_aside) == 1
    np.testing.assert_allclose(stored(second, teacher_config, teacher, texts), before, atol=1e-3)


def test_nan_stops_and_keeps_what_is_finished(
    texts: Texts, teacher: Embedder, teacher_config: TeacherConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "SHARD_TEXTS", 30)
    encode = teacher.encode_ids
    calls = []

    def failing(ids: list[np.ndarray], **settings: int) -> np.ndarray:
        calls.append(len(ids))
        return encode(ids, **settings) if len(calls) == 1 else np.full((len(ids), teacher.width), np.nan)

    monkeypatch.setattr(teacher, "encode_ids", failing)
    with pytest.raises(ValueError, match="vectors hold NaN"):
        embed_texts(teacher_config, texts, tmp_path, progress=False, embedder=teacher)
    monkeypatch.undo()
    report = embed_texts(teacher_config, texts, tmp_path, progress=False, embedder=teacher)
    assert (report.reused, report.computed) == (30, len(texts) - 30)


def test_a_killed_run_loses_no_finished_shard(
    texts: Texts, teacher: Embedder, teacher_config: TeacherConfig, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    make_texts(data, PAIRS)
    script = f"""
import torch
torch.set_num_threads(1)
from pathlib import Path
from data_prep import embed as room
from data_prep.tables import Texts
from data_prep.teacher import TeacherConfig
room.SHARD_TEXTS = 5
texts = Texts.load(Path({str(data / "data" / "texts")!r}))
room.embed_texts(TeacherConfig(max_tokens=48), texts, Path({str(tmp_path / "stores")!r}), progress=False)
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        while not (shards := list((tmp_path / "stores").glob("*/shards/*.arrow"))) and process.poll() is None:
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert shards
    report = embed_texts(teacher_config, texts, tmp_path / "stores", progress=False, embedder=teacher)
    assert report.computed > 0
    assert report.reused >= 5
    assert report.reused + report.computed == len(texts)
    assert not report.set_aside
    whole = embed_texts(teacher_config, texts, tmp_path / "undisturbed", progress=False, embedder=teacher)
    undisturbed = stored(whole, teacher_config, teacher, texts)
    np.testing.assert_allclose(stored(report, teacher_config, teacher, texts), undisturbed, atol=1e-3)


def test_a_progress_bar_is_shown(
    texts: Texts, teacher: Embedder, teacher_config: TeacherConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embed_texts(teacher_config, texts, tmp_path, progress=True, embedder=teacher)
    captured = capsys.readouterr()
    assert f"{len(texts)} texts, " in captured.err
    assert "tokens/s" in captured.err
    assert not captured.out


def test_a_teacher_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="weights"):
        load_teacher(TeacherConfig(model=str(tmp_path), pooling="mean"))
    with pytest.raises(ValueError, match="does not exist"):
        load_teacher(TeacherConfig(model=str(tmp_path / "none")))


def test_another_config_of_the_same_weights_is_another_teacher(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(resolve_model(TeacherConfig().model), folder)
    config = TeacherConfig(model=str(folder))

    def identity() -> dict[str, object]:
        return teacher_identity(config, load_teacher(config))

    before, facts = identity(), read_json(folder / "config.json")
    write_json(folder / "config.json", facts | {"transformers_version": "4.0", "torch_dtype": "float16"})
    assert identity() == before
    write_json(folder / "config.json", facts | {"layer_norm_eps": 1e-3})
    assert identity() != before
