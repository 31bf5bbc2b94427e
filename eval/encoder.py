"""What mteb sees as a model: vectors computed once per distinct (prompt, text), looked up for every task.

First a dry run of each task notes the texts it will ask for (mteb decides: it samples, undersamples and filters). All
of them are then encoded together, longest with longest, and the tasks are scored on the stored vectors.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from mteb.models.model_meta import ModelMeta
from mteb.similarity_functions import cos_sim, pairwise_cos_sim
from mteb.types import PromptType

from embedding.instruction import Role, Template
from eval.kinds import SEARCHED
from eval.suite import SuiteTask
from eval.views import Change, View

STREAMED_CORPUS = 200_000
"""Documents of a larger corpus are encoded chunk by chunk as mteb asks for them, and not kept: memory stays bounded."""


class TextEncoder(Protocol):
    """What an evaluation needs of a model; `embedding.embedder.Embedder` is one."""

    template: Template
    tokenizer: Any

    def tokenize(self, texts: Sequence[str], prompts: Sequence[str]) -> list[np.ndarray]:
        """Whole token rows of prompt + text."""
        ...

    def encode_ids(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors float32 [N, D] of token rows."""
        ...


class Request(NamedTuple):
    """Texts a task asks for in one role."""

    role: Role
    texts: list[str]


class MtebModel:
    """What mteb's EncoderProtocol asks of a model besides `encode`: a name, and cosine."""

    def __init__(self, model_name: str = "eyas", revision: str | None = None, **kwargs: Any) -> None:
        self.mteb_model_meta = ModelMeta.create_empty({"name": f"eyas/{model_name}", "revision": revision})

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine of every pair."""
        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine of corresponding rows."""
        return pairwise_cos_sim(embeddings1, embeddings2)


class _RoleModel(MtebModel, ABC):
    """A model to which a text's role is all that matters of where mteb asks for it."""

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Vectors [N, D] for a DataLoader of texts. Documents of searches are documents, everything else is a query."""
        role: Role = "document" if prompt_type == PromptType.document else "query"
        # Straight from the table below the loader: batching 32 texts at a time through its collation costs more than
        # looking the vectors up.
        return self.vectors(role, list(inputs.dataset["text"]))

    @abstractmethod
    def vectors(self, role: Role, texts: list[str]) -> np.ndarray:
        """The vectors of texts in a role, float32 [N, D]."""


class _AllNoted(Exception):
    """Raised by the dry run when the last texts of a subset are noted; nothing is scored."""


class _Notebook(_RoleModel):
    """Notes what a task asks for. Stops it before it computes a score."""

    def __init__(self, calls: int, documents: int) -> None:
        super().__init__("dry-run")
        self.requests: list[Request] = []
        self.calls, self.documents = calls, documents

    def vectors(self, role: Role, texts: list[str]) -> np.ndarray:
        self.requests.append(Request(role, texts))
        self.calls -= 1
        self.documents -= len(texts) if role == "document" else 0
        if self.calls <= 0 and self.documents <= 0:
            raise _AllNoted
        return np.ones((len(texts), 2), dtype=np.float32)


def requests_of(entry: SuiteTask) -> list[Request]:
    """The texts mteb will ask for when it runs this task, by a dry run that stops before scoring.

    What a task with more calls than usual asks for later is encoded when it asks.
    """
    found: list[Request] = []
    task: Any = entry.fresh()
    for split in task.eval_splits:
        for subset in task.hf_subsets:
            documents = len(task.dataset[subset][split]["corpus"]) if entry.kind in SEARCHED else 0
            # One call for the items to cluster; two where there are two sides, or a train and a test part.
            streamed = documents > STREAMED_CORPUS
            calls = 1 if entry.kind == "clustering" or streamed else 2
            notebook = _Notebook(calls, 0 if streamed else documents)
            with contextlib.suppress(_AllNoted):
                task.evaluate(notebook, split, subsets_to_run=[subset], encode_kwargs={"show_progress_bar": False})
            found += notebook.requests
    return found


class VectorTable:
    """Distinct (prompt, text) pairs and their vectors [N, D]."""

    def __init__(self, positions: dict[tuple[str, str], int], vectors: np.ndarray) -> None:
        self.positions, self.values = positions, vectors
        self._changes: dict[View, Change] = {}

    def change(self, view: View) -> Change:
        """The change of a view, calibrated on all vectors once."""
        if view not in self._changes:
            self._changes[view] = view.change(self.values)
        return self._changes[view]

    def find(self, prompt: str, texts: Sequence[str]) -> np.ndarray:
        """Rows of the texts after a prompt, int64 [N]; -1 where a text was never encoded."""
        return np.fromiter((self.positions.get((prompt, text), -1) for text in texts), np.int64, len(texts))


class StoredModel(_RoleModel):
    """Answers mteb from a table of vectors; texts that are not in it (streamed corpora) are encoded on the spot."""

    def __init__(
        self,
        table: VectorTable,
        prompts: dict[Role, str],
        encode: Callable[[Sequence[str], Sequence[str]], np.ndarray],
        view: View,
    ) -> None:
        super().__init__()
        self.table, self.prompts, self.encode_texts = table, prompts, encode
        self.change = table.change(view)

    def vectors(self, role: Role, texts: list[str]) -> np.ndarray:
        """See the base class.

        Raises:
            ValueError: a vector is not finite (the message counts them and shows a text), or of another width.
        """
        prompt = self.prompts[role]
        rows = self.table.find(prompt, texts)
        if (rows >= 0).all():
            found = self.table.values[rows]
        else:
            places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
            found = self.encode_texts([prompt] * len(places), list(places))[[places[text] for text in texts]]
            width = self.table.values.shape[1]
            if len(self.table.values) and found.shape[1] != width:
                raise ValueError(f"the model's width changed: its vectors had {width} numbers, now {found.shape[1]}")
        bad = ~np.isfinite(found).all(axis=1)
        if bad.any():
            text = texts[int(np.argmax(bad))]
            raise ValueError(
                f"the model gave NaN or infinity for {int(bad.sum())} of {len(texts)} texts, e.g. {text[:80]!r}"
            )
        return self.change(found)
