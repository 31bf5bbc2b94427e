"""The store that belongs to a teacher: found by its fingerprint, begun with a reason, refused where it is another's.

Shapes: E width of the teacher.
"""

from pathlib import Path
from typing import Any

import numpy as np

from data_prep.endpoint import Endpoint
from data_prep.reduce import Reduction
from data_prep.teacher import AnyTeacher, Imported, Teacher, teacher_identity
from data_prep.vectors import VectorStore
from embedding.files import content_keys, differences, fingerprint, read_manifest
from embedding.tokens import PROBE

SAME_COSINE = 0.999
"""An endpoint's vector of one text, asked again, must be this close to the stored one: rounding differs between
batches and machines, models differ by far more."""


def open_store(config: AnyTeacher, teacher: Teacher, stores: Path) -> tuple[VectorStore, str]:
    """The teacher's store below `stores`, and why it was begun beside existing ones ("" otherwise).

    Raises:
        ValueError: vectors to import that nobody imported.
    """
    identity = teacher_identity(config, teacher)
    folder = stores / fingerprint(identity)
    manifest = read_manifest(folder)
    note = "" if manifest else _nearest(stores, identity)
    if isinstance(teacher, Imported):
        if manifest is None:
            raise ValueError(
                f"{folder}: no vectors of {config.model!r} were imported; run `eyas vectors import` first"
                + (f" ({note})" if note else "")
            )
        teacher.width = int(manifest["width"])
        return VectorStore.open(folder, identity, teacher.width), ""
    return VectorStore.open(folder, identity, config.store.pca or teacher.width), note


def require_same_model(teacher: Endpoint, store: VectorStore, reduction: Reduction | None) -> None:
    """Keep the vector of one text, and compare it the next time: nobody tells us when a served model changes.

    Raises:
        ValueError: it is another vector now.
    """
    key_12 = content_keys([""], [PROBE])
    now_1E = teacher.encode_ids(teacher.tokenize([PROBE], [""]))
    now_1E = now_1E if reduction is None else reduction.apply(now_1E)
    if store.missing(key_12).any():
        store.append(key_12, now_1E)
        return
    stored_1E = store.rows(key_12)
    cosine = float((stored_1E * now_1E).sum() / np.linalg.norm(stored_1E) / np.linalg.norm(now_1E))
    if cosine < SAME_COSINE:
        raise ValueError(
            f"{store.folder}: {teacher.config.url} no longer gives the vectors stored here (cosine {cosine:.3f} for "
            f"{PROBE!r}): the model behind it has changed; set teacher.revision to begin a new store"
        )


def _nearest(stores: Path, identity: dict[str, Any]) -> str:
    """How the most similar existing store differs: the reason why a new one is begun."""
    manifests = [read_manifest(folder) for folder in sorted(stores.glob("*")) if folder.is_dir()]
    others = [differences(identity, manifest["made_from"]) for manifest in manifests if manifest]
    if not others:
        return ""
    nearest = min(others, key=lambda lines: len(lines))
    return f"a new store, since no existing one fits; nearest: {'; '.join(nearest)}"
