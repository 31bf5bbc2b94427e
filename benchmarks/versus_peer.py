"""The other side of `benchmarks.versus_st` as it is asked: its starts, its vectors and its trainings, each once."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.pairs import TEACHER
from benchmarks.recipes import Experiment
from benchmarks.st_distill import Settings
from data_prep.tables import Texts
from embedding.embedder import Embedder
from embedding.files import fingerprint, new_folder, read_json, write_json
from embedding.layout import resolve_model
from embedding.tokens import cut
from train.fold import FOLD_TEXTS, covering, fold
from train.recipe import Recipe
from train.start import STATIC_TEXTS
from train.static_start import static_start
from train.student import build_student


class Setting(NamedTuple):
    """What is searched."""

    learning_rate: float
    batch_size: int
    """Rows of the product, of a pair both texts; texts of the peer, whose data set has no rows of several."""
    embedding_rate: float | None = None
    """Of the peer, where its token embeddings have another."""

    def words(self) -> tuple[str, ...]:
        """For `eyas run`."""
        return f"stages.0.learning_rate={self.learning_rate}", f"stages.0.batch_size={self.batch_size}"


class Peer:
    """Runs of sentence-transformers in processes of their own; what is finished is not done again."""

    def __init__(self, experiment: Experiment, recipe: Recipe, data: Path) -> None:
        self._experiment, self._recipe = experiment, recipe
        same = recipe.model_dump(mode="json", exclude={"output", "cache"})
        # A folder for each recipe and data: what was made of others is not taken.
        self.folder = experiment.work / f"peer-{fingerprint([same, data.name])[:8]}"
        self._texts = self.folder / "texts.json"
        if not self._texts.is_file():
            texts = Texts.load(data / "texts")
            write_json(self._texts, list(dict.fromkeys(texts.text(row) for row in range(len(texts)))))

    def start(self, name: str) -> Path:
        """The untrained student: its layers `copied`, or `folded`, or built and `static`; the seconds of the last two
        lie beside its weights."""
        path = self.folder / "starts" / name
        if not path.is_dir():
            student = build_student(self._recipe.student, Embedder.from_pretrained(TEACHER), self._recipe.seed)
            texts = np.array(read_json(self._texts), dtype=object)
            # Neither side's time holds the tokenizing here.
            if name == "folded":
                first = spread(len(texts), FOLD_TEXTS)
                rows = self._rows(student.embedder, texts[first])
                others = self._rows(student.embedder, np.delete(texts, first))
            elif name == "static":
                first = spread(len(texts), STATIC_TEXTS)
                rows = self._rows(student.embedder, texts[first])
                suffix = len(student.embedder.specials.after)
                rows = [cut(row, self._recipe.stages[0].max_tokens, suffix) for row in rows]  # as the teacher read them
                vectors_ND = np.load(self.folder / "vectors" / "vectors.npy")[first]
            begin = time.perf_counter()
            if name == "folded":
                read = covering([student.embedder.cut(row) for row in rows], others, student.embedder.specials)
                fold(student.embedder, student.lower[0], read)
            elif name == "static":
                static_start(student.embedder, rows, vectors_ND)
            seconds = time.perf_counter() - begin
            with new_folder(path) as folder:
                student.embedder.save_pretrained(folder)
                write_json(folder / "seconds.json", seconds)
        return path

    @staticmethod
    def _rows(embedder: Embedder, texts: np.ndarray) -> list[np.ndarray]:
        return embedder.tokenize(texts.tolist(), [""] * len(texts))

    def vectors(self) -> dict[str, Any]:
        """The seconds of the teacher's pass, and the batch size it took."""
        tokens = self._recipe.stages[0].max_tokens
        return self._result("vectors", "vectors", Settings(str(resolve_model(TEACHER)), str(self._texts), "", tokens))

    def train(self, name: str, setting: Setting, steps: int, seed: int, start: str) -> dict[str, Any]:
        """A training from one of the starts; its `seconds`, `seconds_per_step` and `overhead`."""
        stage = self._recipe.stages[0]
        settings = Settings(
            model=str(self.start(start)),
            texts=str(self._texts),
            out="",
            max_tokens=stage.max_tokens,
            vectors=str(self.folder / "vectors" / "vectors.npy"),
            steps=steps,
            learning_rate=setting.learning_rate,
            embedding_rate=setting.embedding_rate,
            batch_size=setting.batch_size,
            warmup=stage.warmup,
            seed=seed,
            final_tokens=self._recipe.student.max_tokens,
        )
        return self._result(name, "train", settings)

    def _result(self, name: str, what: str, settings: Settings) -> dict[str, Any]:
        made_from = settings.__dict__ | {"out": str(self.folder / name)}
        out, path = self.folder / name, self.folder / f"{name}.json"
        if not (out / "result.json").is_file() or not path.is_file() or read_json(path) != made_from:
            (out / "result.json").unlink(missing_ok=True)
            write_json(path, made_from)
            self._experiment.process(["benchmarks.st_distill", what, str(path)], f"peer-{name}")
        return dict(read_json(out / "result.json"))


def spread(count: int, wanted: int) -> np.ndarray:
    """Positions of about so many of a list's items, from everywhere."""
    return np.arange(0, count, max(1, count // wanted))
