"""Comparing texts: the normal form in which two texts count as the same, and its 64-bit digest."""

import hashlib
import re
import unicodedata

_GAPS = re.compile(r"[\W_]+")


def normal_form(text: str) -> str:
    """`text` without what a copy may change: NFKC, case folded, every run of punctuation and white space one space.

    A text of punctuation alone keeps its characters, so that `==` and `!=` stay different texts.
    """
    folded = text.casefold() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return _GAPS.sub(" ", folded).strip() or folded.strip()


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
