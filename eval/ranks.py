"""The processes that evaluate together. This layer knows no process group: whoever has one hands its gather down."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


def _alone(value: Any) -> list[Any]:
    return [value]


class Ranks(NamedTuple):
    """How many processes share an evaluation, which of them this one is, and how they tell each other."""

    size: int = 1
    rank: int = 0
    gather: Callable[[Any], list[Any]] = _alone
    """Every rank's value in the order of ranks, the same list on every rank. Each rank must ask."""

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's share: every `size`-th item, so that sorted items are shared evenly."""
        return items[self.rank :: self.size]


ALONE = Ranks()
