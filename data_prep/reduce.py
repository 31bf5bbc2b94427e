"""Fewer numbers a vector: the principal axes of a sample of the teacher's vectors, and what that costs.

Shapes: N vectors, E width of the teacher, R width after the reduction.
"""

import json
import os
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import Field
from safetensors import safe_open
from safetensors.numpy import save_file

from data_prep.shards import Stored
from embedding.config import Config
from embedding.files import sync_folder

FILE = "reduction.safetensors"
MEASURED_SHARE = 0.2
"""Share of the sample that the axes are not fitted to, but measured on."""
MEASURED_MOST = 2_000
NEIGHBOURS = 10


class StoreConfig(Config):
    """How a teacher's vectors are stored; part of what names a store."""

    dtype: Stored = "float16"
    pca: int | None = Field(default=None, ge=2)
    """Keep so many principal axes; None: the vectors as they are."""
    pca_sample: int = Field(default=20_000, ge=100)
    """Texts that the axes are fitted to and measured on."""


@dataclass(frozen=True)
class Fidelity:
    """What a reduction keeps, measured on texts it was not fitted to."""

    texts: int
    energy: float
    """Mean squared length of a unit vector after the projection: 1 when nothing is lost."""
    cosine_error: float
    """Mean absolute change of the cosine of two texts."""
    neighbours: float
    """Share of a text's ten nearest texts that are its ten nearest afterwards."""
    order: float
    """Share of pairs of texts whose order by cosine to a third one stays."""


@dataclass(frozen=True)
class Reduction:
    """A projection to principal axes, then unit length."""

    axes_RE: np.ndarray
    fidelity: Fidelity

    @classmethod
    def fit(cls, sample_NE: np.ndarray, width: int) -> Self:
        """Fit to the first part of a sample, measure on the rest.

        The axes are the leading eigenvectors of the second moment, not centred: that keeps inner products best
        (Eckart and Young, 1936), and cosines of vectors are what a student learns.

        Raises:
            ValueError: the sample has fewer vectors than axes, or the teacher fewer numbers.
        """
        measured = min(MEASURED_MOST, int(len(sample_NE) * MEASURED_SHARE))
        fitted_NE = sample_NE[: len(sample_NE) - measured].astype(np.float64)
        if width >= sample_NE.shape[1] or width > len(fitted_NE):
            raise ValueError(
                f"store.pca {width}: expected fewer than the teacher's {sample_NE.shape[1]} numbers, and at most the "
                f"{len(fitted_NE)} texts it is fitted to"
            )
        _, vectors = np.linalg.eigh(fitted_NE.T @ fitted_NE)  # ascending
        axes_RE = np.ascontiguousarray(vectors[:, ::-1][:, :width].T, dtype=np.float32)
        # An eigenvector's sign is arbitrary; fixed, so that two fits of one sample agree.
        axes_RE *= np.sign(axes_RE[np.arange(width), np.abs(axes_RE).argmax(axis=1)])[:, None]
        held_ME = sample_NE[len(sample_NE) - measured :]
        return cls(axes_RE, _fidelity(held_ME, held_ME @ axes_RE.T))

    @property
    def width(self) -> int:
        """R."""
        return len(self.axes_RE)

    def apply(self, vectors_NE: np.ndarray) -> np.ndarray:
        """[N, E] -> [N, R], unit norm."""
        return _unit(vectors_NE @ self.axes_RE.T)

    def save(self, folder: Path) -> Self:
        """Write it to a store, unless another process did so first; returns the one that is there."""
        aside = folder / f".{FILE}.{uuid.uuid4().hex[:8]}"
        try:
            save_file({"axes": self.axes_RE}, aside, metadata={"fidelity": json.dumps(asdict(self.fidelity))})
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            try:
                os.link(aside, folder / FILE)
            except FileExistsError:
                return self.load(folder)
            except OSError:  # a file system without hard links
                if (folder / FILE).is_file():  # of two that come at the very same moment the later one stays
                    return self.load(folder)
                aside.replace(folder / FILE)
            sync_folder(folder)
        finally:
            aside.unlink(missing_ok=True)
        return self

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The reduction of a store."""
        with safe_open(folder / FILE, framework="numpy") as file:
            return cls(file.get_tensor("axes"), Fidelity(**json.loads(file.metadata()["fidelity"])))


def _fidelity(whole_ME: np.ndarray, reduced_MR: np.ndarray) -> Fidelity:
    energy = float(np.square(reduced_MR).sum() / np.square(whole_ME).sum())
    before, after = (vectors @ vectors.T for vectors in (_unit(whole_ME), _unit(reduced_MR)))
    others = ~np.eye(len(before), dtype=bool)
    error = float(np.abs(before - after)[others].mean())
    for cosines in (before, after):
        np.fill_diagonal(cosines, -2.0)
    count = min(NEIGHBOURS, len(before) - 1)
    near, still = (np.argpartition(-cosines, count - 1, axis=1)[:, :count] for cosines in (before, after))
    kept = np.mean([len(np.intersect1d(a, b)) / count for a, b in zip(near, still, strict=True)])
    # Triples drawn once, with a fixed seed: all of them are M ** 3.
    rows, one, two = np.random.default_rng(0).integers(0, len(before), (3, 200_000))
    distinct = (rows != one) & (rows != two) & (one != two)
    rows, one, two = rows[distinct], one[distinct], two[distinct]
    same = (before[rows, one] > before[rows, two]) == (after[rows, one] > after[rows, two])
    return Fidelity(len(whole_ME), energy, error, float(kept), float(same.mean()))


def _unit(vectors_NE: np.ndarray) -> np.ndarray:
    unit: np.ndarray = vectors_NE / np.maximum(np.linalg.norm(vectors_NE, axis=1, keepdims=True), 1e-12)
    return unit
