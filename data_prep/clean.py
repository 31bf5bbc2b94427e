"""Comparing texts: the normal form in which two texts count as the same, and its 64-bit digest."""

import hashlib
import re
import unicodedata
from functools import cache

_GAPS = re.compile(r"\W+")
"""For ASCII without underscores."""
_SELECTORS = {*range(0xFE00, 0xFE10), *range(0x180B, 0x1810)}
"""Variation selectors of the Basic Multilingual Plane (Unicode 16, 23.4)."""


@cache
def _any_gaps() -> re.Pattern[str]:
    """For any script. To Python's `\\w` the vowel signs of Indic and Thai letters, which tell words apart, are no part
    of a word; here they are. Variation selectors and enclosing marks, which make an emoji of a sign, stay gaps."""
    marks: list[list[int]] = []
    for code in range(0x300, 0x20000):  # beyond it all are selectors
        if unicodedata.category(chr(code)) not in ("Mn", "Mc") or code in _SELECTORS:
            continue
        if marks and marks[-1][1] == code - 1:
            marks[-1][1] = code
        else:
            marks.append([code, code])
    return re.compile(f"[^\\w{''.join(f'{chr(first)}-{chr(last)}' for first, last in marks)}]+")


def normal_form(text: str) -> str:
    """`text` without what a copy may change: NFKC, case folded, every run of punctuation and white space one space.

    A text of punctuation alone keeps its characters, so that `==` and `!=` stay different texts.
    """
    ascii_only = text.isascii()
    folded = text.casefold() if ascii_only else unicodedata.normalize("NFKC", text).casefold()
    return (_GAPS if ascii_only else _any_gaps()).sub(" ", folded.replace("_", " ")).strip() or folded.strip()


def digest(text: str) -> int:
    """BLAKE2b-64 of the normal form of `text`: equal numbers are equal texts (but for one chance in 2**64 a pair)."""
    return digest_normal(normal_form(text))


def digest_normal(normal: str) -> int:
    """`digest` of a text that is in normal form already."""
    data = normal.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def order(seed: int, name: str) -> int:
    """A number in [0, 2**64) that depends on the seed and the name alone: what deterministic samples are sorted by."""
    data = f"{seed}:{name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
