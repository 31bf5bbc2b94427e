"""Smaller vectors: the same evaluation on the first numbers of each vector, or on fewer bits of each number.

Shapes: N vectors, D their width.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

Precision = Literal["float32", "int8", "binary"]
BITS: dict[Precision, int] = {"float32": 32, "int8": 8, "binary": 1}
Change = Callable[[np.ndarray], np.ndarray]


class View(NamedTuple):
    """A way to store vectors."""

    width: int | None = None
    """Matryoshka cut: the first so many numbers, at unit norm again. None: all."""
    precision: Precision = "float32"

    @property
    def name(self) -> str:
        """For tables: `width 128`, `int8`, `width 128, binary`."""
        parts = [f"width {self.width}"] if self.width else []
        parts += [self.precision] if self.precision != "float32" else []
        return ", ".join(parts) or "full"

    def bytes(self, width: int) -> int:
        """Of one stored vector of a model of this width."""
        return -(-(self.width or width) * BITS[self.precision] // 8)

    def change(self, values_ND: np.ndarray) -> Change:
        """What turns vectors [n, D] into what a search on stored ones would see; `values_ND` calibrates int8.

        int8 is an 8-bit scalar quantiser: 256 levels between the least and the greatest value of each number, decoded
        before the comparison, as faiss and most vector stores do it. binary keeps the signs; the cosine of signs
        orders as the Hamming distance does.

        Raises:
            ValueError: the cut is wider than the vectors.
        """
        if self.width is not None and self.width > values_ND.shape[1]:
            raise ValueError(f"width {self.width}: the vectors have {values_ND.shape[1]} numbers; ask for fewer")
        if self.precision == "float32":
            return self._cut
        if self.precision == "binary":
            return lambda x_ND: np.where(self._cut(x_ND) > 0, np.float32(1), np.float32(-1))
        finite_ND = self._cut(values_ND[np.isfinite(values_ND).all(axis=1)])
        low_D, high_D = finite_ND.min(axis=0), finite_ND.max(axis=0)
        step_D = np.maximum(high_D - low_D, 1e-12) / 255
        return lambda x_ND: (np.clip(np.rint((self._cut(x_ND) - low_D) / step_D), 0, 255) * step_D + low_D).astype(
            np.float32
        )

    def _cut(self, x_ND: np.ndarray) -> np.ndarray:
        if self.width is None:
            return x_ND
        x_ND = x_ND[:, : self.width]
        return np.asarray(x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12))


FULL = View()
