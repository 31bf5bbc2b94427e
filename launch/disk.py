"""The disks that a recipe writes to, and which of them are too small for it."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name

from embedding.files import expanded, in_bytes
from embedding.layout import PACKAGE

if TYPE_CHECKING:
    from launch.forecast import Forecast
    from train.recipe import Recipe

NUMBER = 4
"""Bytes of a weight in fp32, and of a token in int32."""
HALF = 2
OFFSET = 8
"""Bytes that a row of the tokens table takes beside its tokens."""


class Written(NamedTuple):
    """One thing that is written."""

    what: str
    place: Path
    size: float
    smaller: str
    """The setting that makes less of it; "": none does."""


def written(recipe: "Recipe", found: "Forecast") -> list[Written]:
    """Everything large, as if only vectors were there already."""
    vectors, run, weights = recipe.cache / "vectors", recipe.output / recipe.name, found.weights
    saved = NUMBER * weights.saved if weights else 0
    averaged = any(stage.ema for stage in recipe.stages)
    state = (2 + averaged) * NUMBER * weights.trained if weights else 0
    # The newest, the best one where there are evaluations, and a new one, which is whole before the oldest goes.
    kept = recipe.tracking.keep + (recipe.tracking.evaluate_every > 0) + 1
    store = "teacher.store.dtype=int8 or teacher.store.pca=…"
    tokens = NUMBER * found.student_texts.tokens + OFFSET * found.student_texts.count
    return [
        Written("the teacher to download", Path(HF_HUB_CACHE), _to_download(recipe, found), "HF_HOME on a larger disk"),
        Written("vectors", vectors, (found.vector_bytes or 0) * found.missing, store),
        Written("whole vectors for the pca", vectors, found.sample_bytes, "a smaller teacher.store.pca_sample"),
        Written("tokens", recipe.cache / "tokens", tokens, ""),
        Written("checkpoints", run / "checkpoints", kept * (saved + state), "tracking.keep=1"),
        Written("results of the stages", run / "stages", len(recipe.stages) * saved, ""),
        Written("the model", run / "model", saved, ""),
    ]


def _to_download(recipe: "Recipe", found: "Forecast") -> int:
    """Bytes that the hub still has to give of the teacher's weights, in half precision, as models of that size come."""
    teacher = recipe.teacher
    if teacher.kind != "local" or found.teacher is None:
        return 0
    if teacher.model.startswith(PACKAGE) or Path(expanded(teacher.model)).is_dir():
        return 0
    held = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=teacher.model, repo_type="model") / "blobs"
    here = sum(path.stat().st_size for path in held.iterdir()) if held.is_dir() else 0
    return max(0, HALF * found.teacher.parameters - here)


def shortages(recipe: "Recipe", found: "Forecast") -> list[str]:
    """For each disk that has too little room, what it lacks; [] where all fits."""
    disks: dict[int, tuple[Path, list[Written]]] = {}
    for part in written(recipe, found):
        place = _existing(part.place)
        disks.setdefault(place.stat().st_dev, (place, []))[1].append(part)
    said = []
    for place, parts in disks.values():
        free, need = shutil.disk_usage(place).free, sum(part.size for part in parts)
        if need > free:
            listed = ", ".join(f"{part.what} {in_bytes(part.size)}" for part in parts if part.size)
            largest = max(parts, key=lambda part: part.size)
            instead = f", or {largest.smaller}" if largest.smaller else ""
            said.append(
                f"{place}: {in_bytes(free)} free, {in_bytes(need)} needed ({listed}); set cache and output to larger "
                f"disks{instead}"
            )
    return said


def _existing(path: Path) -> Path:
    """A path, or the nearest folder above it that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
