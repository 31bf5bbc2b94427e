"""The other side of `benchmarks.versus_st`: sentence-transformers' own distillation, in a process of its own.

    python -m benchmarks.st_distill vectors|train SETTINGS.json

`vectors` encodes the texts with the teacher once, at the fastest of some batch sizes; `train` is the recipe of its
documentation: `EmbedDistillLoss` (cosine) on those vectors as labels, through `SentenceTransformerTrainer`, with its
defaults but for what SETTINGS says. Both write `result.json` with their seconds to the folder `out`, as the last thing.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss
from transformers import TrainerCallback

from embedding.files import read_json, write_json

BATCHES = (8, 16, 32, 64, 128)
"""Tried for the teacher's pass, on some TRIED texts from everywhere that have been encoded once before."""
TRIED = 1_024
TOKEN_EMBEDDINGS = r"embed_tokens\.weight$"
"""A pattern for the parameter's name, in a decoder."""
WARM = 0.1
"""Share of the steps that does not count for the pace."""


@dataclass(frozen=True)
class Settings:
    """What one call does."""

    model: str
    """The teacher, or the untrained student."""
    texts: str
    """A JSON list."""
    out: str
    max_tokens: int
    vectors: str = ""
    steps: int = 0
    learning_rate: float = 0.0
    embedding_rate: float | None = None
    """Of the token embeddings; None: as all others."""
    batch_size: int = 0
    warmup: float = 0.05
    seed: int = 0
    final_tokens: int = 256
    """The finished model's longest text."""


def vectors(given: Settings) -> dict[str, Any]:
    """The teacher's vectors of all texts, to `out/vectors.npy`."""
    texts = read_json(Path(given.texts))
    teacher = SentenceTransformer(given.model, device="cpu")
    teacher.max_seq_length = given.max_tokens
    some = texts[:: max(1, len(texts) // TRIED)]
    teacher.encode(some)
    tried = {size: _timed(lambda size=size: teacher.encode(some, batch_size=size)) for size in BATCHES}
    best = min(tried, key=lambda size: tried[size][0])
    seconds, found = _timed(lambda: teacher.encode(texts, batch_size=best, normalize_embeddings=True))
    np.save(Path(given.out) / "vectors.npy", found.astype(np.float32))
    return {"seconds": seconds, "texts": len(texts), "batch_size": best}


def _timed(work: Any) -> tuple[float, Any]:
    begin = time.perf_counter()
    found = work()
    return time.perf_counter() - begin, found


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note it."""
        self.ends.append(time.perf_counter())


def train(given: Settings) -> dict[str, Any]:
    """The student's training; the model goes to `out/model`."""
    begin = time.perf_counter()
    labels_NE = np.load(given.vectors)
    flat = pa.array(labels_NE.ravel())
    labels = pa.FixedSizeListArray.from_arrays(flat, labels_NE.shape[1])
    data = Dataset(pa.table({"sentence": read_json(Path(given.texts)), "label": labels}))
    student = SentenceTransformer(given.model, device="cpu")
    student.max_seq_length = given.max_tokens
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(Path(given.out) / "trainer"),
        max_steps=given.steps,
        per_device_train_batch_size=given.batch_size,
        learning_rate=given.learning_rate,
        learning_rate_mapping={} if given.embedding_rate is None else {TOKEN_EMBEDDINGS: given.embedding_rate},
        warmup_steps=given.warmup,
        lr_scheduler_type="cosine",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=given.seed,
        use_cpu=True,
    )
    clock = Clock()
    trainer = SentenceTransformerTrainer(
        model=student,
        args=arguments,
        train_dataset=data,
        loss=EmbedDistillLoss(student, distance_metric="cosine"),
        callbacks=[clock],
    )
    trainer.train()
    seconds = time.perf_counter() - begin
    student.max_seq_length = given.final_tokens
    student.save(str(Path(given.out) / "model"))
    warm = int(WARM * len(clock.ends))
    pace = (clock.ends[-1] - clock.ends[warm]) / max(1, len(clock.ends) - 1 - warm)
    overhead = max(0.0, seconds - pace * given.steps)
    return {"seconds": seconds, "seconds_per_step": pace, "overhead": overhead, "optimizer": str(arguments.optim)}


def main() -> None:
    """Do one of the two."""
    given = Settings(**json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
    Path(given.out).mkdir(parents=True, exist_ok=True)
    found = {"vectors": vectors, "train": train}[sys.argv[1]](given)
    write_json(Path(given.out) / "result.json", found)


if __name__ == "__main__":
    main()
