"""`eyas vectors …` on stores of a real teacher."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.reduce import FILE
from data_prep.tables import Texts
from data_prep.teacher import vector_keys
from data_prep.vectors import VectorStore
from embedding.embedder import Embedder
from embedding.instruction import Template
from tests.conftest import TEACHER
from tests.launch.conftest import RECIPE, eyas, questions_and_answers, write_rows

ROOT = Path(__file__).parents[2]
IMPORTED = RECIPE.replace("teacher:\n  max_tokens: 32\n", "teacher: {kind: imported, model: from-afar}\n").replace(
    "{kind: pruned, model: teacher, keep: 1}", "{kind: pruned, model: " + TEACHER + ", keep: 1}"
)


@pytest.fixture(scope="module")
def embedded_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedded")
    write_rows(folder / "faq.jsonl", questions_and_answers())
    (folder / "mine.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("data_prep.embed.SHARD_TEXTS", 40)
        result = eyas("embed", "mine.yaml")
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def store(embedded_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store of a fresh copy; the working directory is the folder of its recipe."""
    folder = tmp_path / "work"
    shutil.copytree(embedded_once, folder)
    monkeypatch.chdir(folder)
    return next(Path("runs/cache/vectors").iterdir())


def shards(store: Path) -> list[Path]:
    return sorted((store / "shards").glob("*.arrow"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def flat(text: str) -> str:
    return " ".join(text.split())


def test_info_says_whose_and_what(store: Path) -> None:
    for place in (store, store.parent):
        result = eyas("vectors", "info", str(place))
        assert result.exit_code == 0, result.output
        said = flat(result.stdout)
        count = len(VectorStore.existing(store))
        assert f"vectors {count:,} of 384 x float16" in said
        assert TEACHER in said
        assert "max_tokens 32" in said
    result = eyas("vectors", "info", "runs")
    assert result.exit_code == 2
    assert "no store of vectors here" in flat(result.stderr)


def test_verify_finds_and_changes_nothing_repair_sets_aside_and_embed_computes_again(store: Path) -> None:
    assert len(shards(store)) >= 3
    result = eyas("vectors", "verify", str(store))
    assert result.exit_code == 0
    assert "all sound" in flat(result.stdout)
    texts = Texts.load(next(Path("runs/cache/data").iterdir()) / "texts")
    keys = vector_keys(texts, Template(query="", document=""))
    before = VectorStore.existing(store).rows(keys)
    flipped, cut = shards(store)[:2]
    flip(flipped)
    cut.write_bytes(cut.read_bytes()[:-100])
    stamps = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    result = eyas("vectors", "verify", str(store))
    assert result.exit_code == 2
    assert "2 damaged" in flat(result.stdout)
    assert flipped.name in flat(result.stderr)
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == stamps
    result = eyas("vectors", "repair", str(store))
    assert result.exit_code == 0, result.output
    assert "2 set aside, 0 put back" in flat(result.stdout)
    assert eyas("vectors", "verify", str(store)).exit_code == 0
    result = eyas("embed", "mine.yaml")
    assert result.exit_code == 0, result.output
    assert "vectors are gone from the store; they are computed again" in flat(result.stdout)
    np.testing.assert_allclose(VectorStore.existing(store).rows(keys), before, atol=1e-3)


def test_repair_puts_back_what_is_sound_after_all(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = shards(store)[0]
    sound = victim.read_bytes()
    flip(victim)
    assert "1 set aside" in flat(eyas("vectors", "repair", str(store)).stdout)
    aside = next((store / "damaged").iterdir())
    aside.write_bytes(sound)  # as after a network disk that gave wrong bytes for a while
    (folder := aside.with_name(f"{aside.name.replace('-', '_')}-0-0.arrow")).mkdir()  # what cannot be read as a file
    readable, unread = Path.read_bytes, [True]

    def read_bytes(path: Path) -> bytes:
        if unread and path == aside:
            raise OSError(5, "Input/output error", str(path))
        return readable(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    said = flat(eyas("vectors", "repair", str(store)).stdout)
    assert "0 set aside, 0 put back (2 of those set aside cannot be read)" in said
    unread.clear()
    assert "0 set aside, 1 put back (1 of those set aside cannot be read)" in flat(
        eyas("vectors", "repair", str(store)).stdout
    )
    assert victim.read_bytes() == sound
    assert list((store / "damaged").iterdir()) == [folder]


def test_a_store_goes_to_a_folder_and_back_and_only_what_is_new_is_sent(store: Path, tmp_path: Path) -> None:
    count = len(shards(store))
    result = eyas("vectors", "push", str(store), str(tmp_path / "shared"))
    assert result.exit_code == 0, result.output
    assert f"{count} shards" in flat(result.stdout)
    there = tmp_path / "shared" / store.name
    assert f"0 shards with 0 vectors sent, {count} were there already" in flat(
        eyas("vectors", "push", str(store), str(tmp_path / "shared")).stdout
    )
    (there / "shards" / shards(store)[0].name).unlink()
    assert "1 shards" in flat(eyas("vectors", "push", str(store), str(tmp_path / "shared")).stdout)
    result = eyas("vectors", "pull", str(there), str(tmp_path / "elsewhere"))
    assert result.exit_code == 0, result.output
    mine, theirs = (VectorStore.existing(path) for path in (store, tmp_path / "elsewhere" / store.name))
    assert len(mine) == len(theirs)
    assert theirs.identity == mine.identity
    assert [path.name for path in shards(theirs.folder)] == [path.name for path in shards(store)]


def test_a_damaged_shard_is_not_sent_and_the_rest_is(store: Path, tmp_path: Path) -> None:
    victim = shards(store)[0]
    flip(victim)
    result = eyas("vectors", "push", str(store), str(tmp_path / "shared"))
    assert result.exit_code == 2
    assert f"1 damaged shards were left out: {victim.name}" in flat(result.stderr)
    assert len(shards(tmp_path / "shared" / store.name)) == len(shards(store)) - 1


def test_the_place_of_another_store_is_refused(store: Path, tmp_path: Path) -> None:
    there = tmp_path / "shared" / store.name
    shutil.copytree(store, there)
    manifest = there / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"max_tokens": 32', '"max_tokens": 64'))
    result = eyas("vectors", "push", str(store), str(tmp_path / "shared"))
    assert result.exit_code == 2
    assert "another store is there: made_from.max_tokens: expected 32, found 64" in flat(result.stderr)
    for words in (["push", "nowhere", str(tmp_path)], ["pull", str(tmp_path / "nowhere")], ["verify", "nowhere"]):
        result = eyas("vectors", *words)
        assert result.exit_code == 2
        assert "no store of vectors" in flat(result.stderr)


class Hub:
    """What `huggingface_hub.HfApi` is asked, of a folder in place of a repository."""

    folder: Path

    def create_repo(self, repository: str, **how: Any) -> None:
        self.folder.mkdir(exist_ok=True)

    def list_repo_files(self, repository: str, **how: Any) -> list[str]:
        return [str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()]

    def hf_hub_download(self, repository: str, name: str, **how: Any) -> str:
        return str(self.folder / name)

    def upload_folder(self, *, folder_path: Path, allow_patterns: list[str], **how: Any) -> None:
        copy_some(folder_path, self.folder, allow_patterns)

    def snapshot_download(self, repository: str, *, local_dir: Path, allow_patterns: list[str], **how: Any) -> None:
        copy_some(self.folder, local_dir, allow_patterns)


def copy_some(source: Path, target: Path, patterns: list[str]) -> None:
    for path in (path for pattern in patterns for path in source.glob(pattern)):
        (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / path.relative_to(source))


@pytest.mark.parametrize("place", ["hf://me/vectors", "folder"])
def test_vectors_on_other_axes_are_not_mixed(
    store: Path, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Hub.folder = tmp_path / "repository"
    monkeypatch.setattr("data_prep.vectors_copy.HfApi", Hub)
    (store / FILE).write_bytes(b"axes of these texts")
    kept = Hub.folder if place.startswith("hf://") else Path(place) / store.name
    source = place if place.startswith("hf://") else str(kept)
    for _ in range(2):  # the same axes are there the second time
        assert eyas("vectors", "push", str(store), place).exit_code == 0
    assert eyas("vectors", "pull", source, str(store.parent)).exit_code == 0
    assert eyas("vectors", "pull", source, "elsewhere").exit_code == 0
    other = Path("elsewhere") / store.name
    assert [path.name for path in shards(other)] == [path.name for path in shards(store)]
    (other / FILE).write_bytes(b"axes of other texts")
    for path in shards(kept)[1:]:
        path.unlink()
    for words in (["push", str(other), place], ["pull", source, "elsewhere"]):
        result = eyas("vectors", *words)
        assert result.exit_code == 2, result.output
        assert "fitted to other texts, so its numbers mean something else" in flat(result.stderr)
    assert (kept / FILE).read_bytes() == b"axes of these texts"
    assert (other / FILE).read_bytes() == b"axes of other texts"
    assert len(shards(kept)) == 1, "nothing was sent"


def test_the_hub_that_cannot_be_reached_is_one_message(store: Path) -> None:
    for words in (["push", str(store), "hf://me/vectors"], ["pull", "hf://me/vectors"]):
        result = eyas("vectors", *words)  # HF_HUB_OFFLINE is set for all tests
        assert result.exit_code == 2
        assert "hf://me/vectors: the hub refuses or cannot be reached" in flat(result.stderr)


def test_the_hub_without_a_connection_is_one_message(store: Path) -> None:
    """Not offline mode but a real refused connection, whose error comes from the hub client's HTTP library."""
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "launch", "vectors", "push", str(store), "hf://me/vectors"]
    result = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 2, result.stderr
    assert "hf://me/vectors: the hub refuses or cannot be reached" in flat(result.stderr)
    assert "Traceback" not in result.stderr


# --------------------------------------------------------------------------------------------------------------- import


def write_vectors(path: Path, texts: list[str], vectors: np.ndarray, name: str = "vector") -> None:
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    pq.write_table(pa.table({"text": pa.array(texts, pa.string()), name: column}), path)


def test_imported_vectors_train_a_student(store: Path) -> None:
    texts = Texts.load(next(Path("runs/cache/data").iterdir()) / "texts").texts.to_pylist()
    vectors = Embedder.from_pretrained(TEACHER, max_tokens=32).encode(texts) * 3
    write_vectors(Path("vectors.parquet"), texts, vectors)
    Path("imported.yaml").write_text(IMPORTED)
    result = eyas("train", "imported.yaml", "name=first")
    assert result.exit_code == 2
    assert "run `eyas vectors import` first" in flat(result.stderr)
    half = len(texts) // 2
    write_vectors(Path("half.parquet"), texts[:half], vectors[:half])
    result = eyas("vectors", "import", "imported.yaml", "half.parquet")
    assert result.exit_code == 0, result.output
    result = eyas("train", "imported.yaml", "name=first")
    assert result.exit_code == 2
    assert "have no imported vector" in flat(result.stderr)
    result = eyas("vectors", "import", "imported.yaml", "vectors.parquet")
    assert f"{len(set(texts)) - half:,} vectors of 384 imported, {half:,} were there already" in flat(result.stdout)
    result = eyas("train", "imported.yaml", "name=first")
    assert result.exit_code == 0, result.output
    imported = next(
        path for path in store.parent.iterdir() if '"kind": "imported"' in (path / "manifest.json").read_text()
    )
    keys = vector_keys(Texts.load(next(Path("runs/cache/data").iterdir()) / "texts"), Template(query="", document=""))
    np.testing.assert_allclose(VectorStore.existing(imported).rows(keys), vectors / 3, atol=1e-3)


@pytest.mark.parametrize(
    "words, message",
    [
        (["mine.yaml", "good.parquet"], "its teacher is of kind local; vectors of unknown origin go to a teacher"),
        (["imported.yaml", "none.parquet"], "none.parquet: no such file"),
        (["imported.yaml", "mine.yaml"], "mine.yaml: not a Parquet file"),
        (["imported.yaml", "good.parquet", "--text", "body"], "no column 'body' of text; it has text, vector"),
        (
            ["imported.yaml", "good.parquet", "--vector", "text"],
            "column 'text' holds string, expected lists of numbers",
        ),
        (["imported.yaml", "good.parquet", "--role", "both"], "--role both: expected query or document"),
        (["imported.yaml", "nan.parquet"], "nan.parquet, row 5: a vector that holds NaN or is zero"),
        (["imported.yaml", "zero.parquet"], "zero.parquet, row 2: a vector that holds NaN or is zero"),
        (["imported.yaml", "null.parquet"], "null.parquet, row 1: no text (and 1 more"),
        (["imported.yaml", "ragged.parquet"], "ragged.parquet, row 1: a vector of 3 numbers, expected 4"),
        (["imported.yaml", "empty.parquet"], "no rows to import"),
        (["imported.yaml", "good.parquet", "wide.parquet"], "wide.parquet, row 0: a vector of 5 numbers, expected 4"),
    ],
)
def test_what_cannot_be_imported(store: Path, words: list[str], message: str) -> None:
    Path("imported.yaml").write_text(IMPORTED)
    texts = [f"text {i}" for i in range(8)]
    good = np.random.default_rng(0).standard_normal((8, 4))
    write_vectors(Path("good.parquet"), texts, good)
    write_vectors(Path("wide.parquet"), [f"{text}!" for text in texts], np.ones((8, 5)))
    write_vectors(Path("empty.parquet"), [], np.zeros((0, 4)))
    nan, zero = good.copy(), good.copy()
    nan[5, 1], zero[2] = np.nan, 0
    write_vectors(Path("nan.parquet"), texts, nan)
    write_vectors(Path("zero.parquet"), texts, zero)
    pq.write_table(pa.table({"text": ["a", None, None], "vector": good[:3].tolist()}), "null.parquet")
    pq.write_table(pa.table({"text": ["a", "b"], "vector": [[1.0] * 4, [1.0] * 3]}), "ragged.parquet")
    result = eyas("vectors", "import", *words)
    assert result.exit_code == 2, result.output
    assert message in flat(result.stderr)
