"""The step between embed and tokenize, where the recipe asks for it: hard negatives from vectors that are there."""

from typing import Any

import numpy as np
import torch

from data_prep.embed import embed_texts
from data_prep.mine import FORMAT, MineConfig, mine
from data_prep.search import Vectors
from data_prep.teacher import TeacherConfig, vector_keys
from data_prep.vectors import VectorStore
from embedding.embedder import Embedder
from embedding.files import fingerprint, stamps
from embedding.layout import resolve_model
from launch.steps import Ledger, Result
from launch.workspace import Workspace, on_device


def mine_negatives(at: Workspace, ledger: Ledger) -> Result:
    """The examples with the negatives that the recipe's `mine` section asks for.

    Raises:
        ValueError: the recipe has no such section, the model to mine with is not there, or vectors are gone.
    """
    config = at.recipe.mine
    if config is None:
        raise ValueError("the recipe mines no negatives; add a section `mine: {}`, or mine.negatives=7 to the command")
    made_from: dict[str, Any] = {
        "format": FORMAT,
        "data": at.data.name,
        "teacher": at.vector_facts,
        "mine": config.model_dump(mode="json"),
        "seed": at.recipe.seed,
    }
    if config.model is not None:
        made_from["model"] = stamps(resolve_model(config.model))

    def work() -> Result:
        at.free_teacher()  # whose memory the search needs for the documents
        vectors, identity = _student_vectors(config, at) if config.model else (_teacher_vectors(at, ledger), None)
        mined_from = {**made_from, "model": identity}
        folder = at.cache / "mined" / fingerprint(mined_from)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        found = mine(config, at.data, vectors, mined_from, folder, seed=at.recipe.seed, device=device)
        return {"outputs": [str(folder)], "mined": found}

    result = ledger.step("mine", made_from, work, share=True)
    found = result["mined"]
    ledger.say(
        "",
        f"{found['negatives']:,} negatives for {found['rows']:,} rows ({found['rows with none']:,} without any); "
        f"{found['too near, share']:.1%} of the candidates too near the positive",
    )
    return result


def _teacher_vectors(at: Workspace, ledger: Ledger) -> Vectors:
    if (at.positions_N < 0).any():
        ledger.forget("embed")
    return _stored(at.store, at.positions_N)


def _student_vectors(config: MineConfig, at: Workspace) -> tuple[Vectors, dict[str, Any]]:
    """The vectors of the model of an earlier round, computed where its own store lacks them."""
    assert config.model is not None
    model = on_device(Embedder.from_pretrained(config.model)).requires_grad_(False)
    teacher = TeacherConfig(model=config.model, template=model.template)
    report = embed_texts(teacher, at.texts, at.cache / "vectors", embedder=model)
    store = VectorStore.open(report.store, report.identity, report.width)
    return _stored(store, store.locate(vector_keys(at.texts, model.template))), report.identity


def _stored(store: VectorStore, positions_N: np.ndarray) -> Vectors:
    lost = int((positions_N < 0).sum())
    if lost:
        raise ValueError(f"{store.folder}: {lost} vectors are gone; the same command computes them again")
    return lambda rows: store.read(positions_N[rows])
