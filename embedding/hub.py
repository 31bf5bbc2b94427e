"""The hub: what its client raises, and copies of its data sets on disk, `MIRROR/OWNER/NAME`, read by the `datasets`
library as the hub itself is."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from embedding.files import fingerprint, stamps

TRANSPORT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
"""No answer, or a refusal. The client derives its errors from those of its HTTP library, whichever that is, and lets
the library's own through where there is no connection."""
HUB_ERRORS: tuple[type[Exception], ...] = (TRANSPORT_ERROR, HFValidationError, LocalEntryNotFoundError, OSError)
"""The hub refuses, has no such thing, or cannot be reached."""


@contextlib.contextmanager
def cache_of(copy: Path | None) -> Iterator[None]:
    """Let `datasets` keep what it reads of a copy under the state of its files: by itself it goes by their names alone,
    and would give an earlier copy's rows for a changed one. None: the hub, nothing is changed."""
    if copy is None:
        yield
        return
    from datasets import config

    state = fingerprint([str(copy), stamps(copy)])
    before = config.HF_DATASETS_CACHE
    config.HF_DATASETS_CACHE = Path(before) / f"mirror-{state}"
    try:
        yield
    finally:
        config.HF_DATASETS_CACHE = before
