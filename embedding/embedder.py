"""The Embedder: a backbone, a pooling, optional dense heads, and L2 normalisation. Teacher and student alike.

Shapes: N texts, L tokens of the longest, D width of the vectors.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast, get_args

import numpy as np
import torch
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from embedding.attention import computing_dtype, kernel_runs, packed_mode
from embedding.dense import Dense, load_dense
from embedding.instruction import BARE, Role, Template
from embedding.layout import Layout, read_layout, require_weights, resolve_model, tell_older_readers, write_layout
from embedding.packing import comes_out_alike, fixed_rotary
from embedding.pooling import EMPTY, Pooling, normalize, pool, pool_packed
from embedding.tokens import (
    cut,
    lower_case,
    pack,
    pad,
    plan_chunks,
    save_tokenizer,
    specials,
    token_budget_of,
    tokenize,
)


class Embedder(nn.Module):
    """Texts to unit vectors. Everything that turns ids into a vector is here, in one place, for teacher and student."""

    def __init__(
        self,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pooling: Pooling,
        *,
        max_tokens: int,
        template: Template = BARE,
        prompts: dict[str, str] | None = None,
        dense: Sequence[Dense] = (),
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling {pooling!r}: expected one of {', '.join(get_args(Pooling))}")
        self.backbone = backbone
        self.backbone.config.use_cache = False
        if getattr(backbone, "pooler", None) is not None:
            backbone.register_module("pooler", None)  # BERT's own head: never used, and it would get no gradient
        self.dense = nn.ModuleList(dense)
        self.tokenizer = tokenizer
        self.pooling: Pooling = pooling
        self.max_tokens = max_tokens
        self.template = template
        self.prompts = prompts or {}
        self.normalize = normalize
        self.specials = specials(tokenizer)
        self._alike: dict[tuple[str, torch.dtype], bool] = {}
        self.computes_in: torch.dtype | None = None
        """What `encode` computes in under autocast; None: the type of the weights."""

    @property
    def heads(self) -> list[Dense]:
        """The dense modules after pooling, in order."""
        return cast(list[Dense], list(self.dense))

    @property
    def width(self) -> int:
        """D, the width of the vectors."""
        return self.heads[-1].linear.out_features if self.heads else int(self.backbone.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""
        return self.backbone.device

    @cached_property
    def causal(self) -> bool:
        """Whether a token's state is blind to later tokens: tried on two short texts, not read off a config flag
        (loaders set `config.is_causal`, and what that does depends on the version)."""
        before = self.training
        self.eval()
        try:
            # Ordinary tokens: the first ones of a vocabulary may be unused, and alike.
            ids = torch.tensor([[1005, 1006, 1007], [1005, 1006, 1008]]) % self.backbone.config.vocab_size
            ids = ids.to(self.device)
            with torch.no_grad():
                states = self.backbone(input_ids=ids).last_hidden_state.float()
        finally:
            self.train(before)
        config = self.backbone.config
        if states.shape[2] != config.hidden_size:
            raise ValueError(
                f"a {config.model_type} says that its states are {config.hidden_size} wide; found {states.shape[2]}"
            )
        return torch.allclose(states[0, :2], states[1, :2], atol=1e-5)

    @property
    def position_limit(self) -> int | None:
        """Tokens that a table of positions has rows for, or a rotary embedding fixed angles; None: any number."""
        embeddings = getattr(self.backbone, "embeddings", None)
        table: Any = getattr(embeddings, "position_embeddings", None) or getattr(self.backbone, "wpe", None)
        if not isinstance(table, nn.Embedding):
            return fixed_rotary(self.backbone.config)
        return int(table.num_embeddings) - self._position_offset

    @cached_property
    def _position_offset(self) -> int:
        """RoBERTa-like models (XLM-R, MPNet) number positions from the padding index + 1."""
        embeddings: Any = getattr(self.backbone, "embeddings", None)
        has_offset = hasattr(embeddings, "create_position_ids_from_inputs_embeds")
        return int(embeddings.padding_idx) + 1 if has_offset else 0

    def forward(self, input_ids_NL: Tensor, attention_mask_NL: Tensor) -> Tensor:
        """Padded ids and mask, either padding side -> [N, D] fp32, unit norm where the model normalises."""
        hidden_NLD = self.backbone(
            input_ids=input_ids_NL, attention_mask=attention_mask_NL, position_ids=self.positions(attention_mask_NL)
        ).last_hidden_state
        return self._head(pool(hidden_NLD, attention_mask_NL, self.pooling))

    def positions(self, attention_mask_NL: Tensor) -> Tensor:
        """Of each token, as the backbone numbers them, either padding side: int64 [N, L]."""
        return (attention_mask_NL.cumsum(dim=1) - 1).clamp(min=0) + self._position_offset

    def embed_rows(self, rows: Sequence[np.ndarray]) -> Tensor:
        """One chunk of id rows, already cut -> [n, D] on the model's device; differentiable.

        Packed without padding where that can be, padded on the right otherwise.

        Raises:
            ValueError: a text without a single token.
        """
        if min(len(row) for row in rows) == 0:
            raise ValueError(EMPTY)
        return self.packed(rows) if self.packs else self.padded(rows)

    @property
    def packs(self) -> bool:
        """Whether chunks run packed: on a CPU, and on CUDA where the variable-length kernel runs (half precision, the
        weights' or autocast's, no attention dropout); with a model that comes out the same (`embedding.packing`, asked
        once for each device and type)."""
        dtype = computing_dtype(self.device, self.backbone.dtype)
        names = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
        dropout = self.training and any(getattr(self.backbone.config, name, 0.0) for name in names)
        kernel = kernel_runs(torch.empty(0, device=self.device, dtype=dtype)) and not dropout
        if self.device.type != "cpu" and not kernel:
            return False
        key = self.device.type, dtype
        if key not in self._alike:
            self._alike[key] = comes_out_alike(self, dtype)
        return self._alike[key]

    def padded(self, rows: Sequence[np.ndarray]) -> Tensor:
        """As `embed_rows`, padded on the right."""
        ids_NL, mask_NL = (x.to(self.device, non_blocking=True) for x in pad(rows, self.tokenizer.pad_token_id or 0))
        if not self.causal:
            return self.forward(ids_NL, mask_NL)
        # Right padding lies in the future of every token, so a causal model needs no mask: attention stays on its
        # fast path.
        hidden_NLD = self.backbone(input_ids=ids_NL).last_hidden_state
        return self._head(pool(hidden_NLD, mask_NL, self.pooling))

    def packed(self, rows: Sequence[np.ndarray]) -> Tensor:
        """As `embed_rows`, all texts in one row."""
        ids_T, starts_N1 = pack(rows)
        positions_T = torch.from_numpy(np.concatenate([np.arange(len(row)) for row in rows])) + self._position_offset
        ids_T, starts_N1, positions_T = (x.to(self.device, non_blocking=True) for x in (ids_T, starts_N1, positions_T))
        longest = max(len(row) for row in rows)
        with packed_mode(self.backbone):
            hidden_1TD = self.backbone(
                input_ids=ids_T[None],
                position_ids=positions_T[None],
                cu_seq_lens_q=starts_N1,
                cu_seq_lens_k=starts_N1,
                max_length_q=longest,
                max_length_k=longest,
            ).last_hidden_state
        return self._head(pool_packed(hidden_1TD[0], starts_N1, self.pooling))

    def _head(self, pooled_ND: Tensor) -> Tensor:
        for dense in self.heads:
            pooled_ND = dense(pooled_ND)
        return normalize(pooled_ND) if self.normalize else pooled_ND.to(torch.float32)

    def tokenize(self, texts: Sequence[str], prompts: Sequence[str]) -> list[np.ndarray]:
        """Ids of prompt + text + special tokens, whole: int32 [length] each."""
        return tokenize(self.tokenizer, prompts, texts)

    def cut(self, ids: np.ndarray) -> np.ndarray:
        """A whole id row, cut to `max_tokens`."""
        return cut(ids, self.max_tokens, len(self.specials.after))

    def require_room(self, prompt: str, max_tokens: int) -> None:
        """Refuse a cut that would reach into the prompt.

        Raises:
            ValueError: prompt and special tokens leave no token for a text.
        """
        used = len(self.tokenize([""], [prompt])[0])
        if used >= max_tokens:
            raise ValueError(
                f"prompt {prompt!r} has {used} tokens with the special ones, which leaves none of {max_tokens} for a "
                "text; raise max_tokens or shorten the instruction"
            )

    def encode(
        self,
        texts: Sequence[str],
        *,
        instruction: str = "",
        role: Role | None = None,
        token_budget: int | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """Vectors of texts: float32 [N, D], in the order given.

        `role` defaults to query where there is an instruction and to document where there is none.

        Raises:
            ValueError: `texts` is one string, a text is not a string, or the prompt alone fills the model.
        """
        if isinstance(texts, str):
            raise ValueError("encode() got one string; expected a list of texts: encode([text])")
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"text {position} is a {type(text).__name__}: {text!r}; expected a string")
        prompt = self.template.prompt(role or ("query" if instruction else "document"), instruction)
        self.require_room(prompt, self.max_tokens)
        ids = self.tokenize(texts, [prompt] * len(texts))
        return self.encode_ids(ids, token_budget=token_budget, progress=progress)

    def encode_ids(
        self, ids: Sequence[np.ndarray], *, token_budget: int | None = None, progress: bool = False
    ) -> np.ndarray:
        """Vectors of whole id rows, cut here to `max_tokens`: float32 [N, D], in the order given."""
        vectors_ND = np.empty((len(ids), self.width), dtype=np.float32)
        rows = [self.cut(row) for row in ids]
        lengths_N = np.array([len(row) for row in rows], dtype=np.int64)
        training = self.training
        self.eval()
        budget = token_budget or token_budget_of(self.device)
        try:
            with torch.inference_mode(), self._computing():
                chunks = plan_chunks(lengths_N, budget, packed=self.packs)
                for chunk in track(chunks, "encoding", disable=not progress, transient=True):
                    vectors_ND[chunk] = self.embed_rows([rows[i] for i in chunk]).float().cpu().numpy()
        finally:
            self.train(training)
        return vectors_ND

    def _computing(self) -> AbstractContextManager[Any]:
        if self.computes_in is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.computes_in)

    def identity(self) -> dict[str, Any]:
        """Every fact that determines a vector, as JSON values, for fingerprints."""
        return {
            "weights": self._weights_digest(),
            "tokenizer": hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16],
            "pooling": self.pooling,
            "normalize": self.normalize,
            "dense": [asdict(dense.spec("")) for dense in self.heads],
            "template": self.template.model_dump(),
            "max_tokens": self.max_tokens,
            "dtype": str(self.computes_in or self.backbone.dtype).removeprefix("torch."),
        }

    def _weights_digest(self) -> str:
        digest = hashlib.sha256(type(self.backbone).__name__.encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def _unused_head(self) -> dict[str, Tensor]:
        """Zeros where every reader of a BERT folder looks for that model's own pooling head: without them it warns of
        weights that were newly initialized."""
        with torch.device("meta"):
            whole = type(self.backbone)(self.backbone.config).state_dict()
        absent = whole.keys() - self.backbone.state_dict().keys()
        heads = sorted(name for name in absent if name.startswith("pooler."))
        return {name: torch.zeros(whole[name].shape, dtype=self.backbone.dtype) for name in heads}

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        pooling: Pooling | None = None,
        template: Template | None = None,
        max_tokens: int | None = None,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        trust_remote_code: bool = False,
        loading: Mapping[str, Any] | None = None,
    ) -> Self:
        """Load a sentence-transformers folder, a plain Hugging Face encoder or decoder, or either from the hub.

        Args:
            name: a folder, a hub id, or `package:NAME/FOLDER` (a folder inside an installed Python package).
            pooling, template, max_tokens: override what the folder says; a plain model needs `pooling`.
            loading: further arguments of transformers' `from_pretrained`, such as `device_map`.

        Raises:
            ValueError: no such model, no weights in it, weights that do not fit, or a pooling that nobody gave.
        """
        folder = resolve_model(str(name), revision)
        layout = read_layout(folder)
        pooling = pooling or layout.pooling
        if pooling is None:
            raise ValueError(f"{name}: a plain model folder does not say how it pools; give pooling: last, mean or cls")
        inner = folder / layout.transformer
        require_weights(inner)
        tokenizer = AutoTokenizer.from_pretrained(inner, trust_remote_code=trust_remote_code)
        if layout.lower_case:
            lower_case(tokenizer)
        config = AutoConfig.from_pretrained(inner, trust_remote_code=trust_remote_code)
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError(f"{name}: a {config.model_type} has an encoder and a decoder; eyas takes one of the two")
        if not hasattr(config, "hidden_size") or not hasattr(config, "vocab_size"):
            raise ValueError(
                f"{name}: a {config.model_type} has no hidden_size and vocab_size of its own; name a text model"
            )
        verbosity = logging.get_verbosity()
        logging.set_verbosity(40)  # errors only: silences its report of missing keys; ours below refuses them
        try:
            backbone, info = AutoModel.from_pretrained(
                inner,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **(loading or {}),
            )
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise ValueError(f"{inner}: cannot load the weights: {str(error).splitlines()[0]}") from error
        finally:
            logging.set_verbosity(verbosity)
        missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise ValueError(f"{inner}: the weights lack {', '.join(missing[:3])} ({len(missing)} in all)")
        positions = int(getattr(backbone.config, "max_position_embeddings", tokenizer.model_max_length))
        embedder = cls(
            backbone,
            tokenizer,
            pooling,
            max_tokens=max_tokens or layout.max_tokens or min(positions, tokenizer.model_max_length),
            template=template or layout.template,
            prompts=layout.prompts,
            dense=[load_dense(folder, spec) for spec in layout.dense],
            normalize=layout.normalize,
        )
        limit = embedder.position_limit
        if limit is not None and embedder.max_tokens > limit:
            if max_tokens is not None:
                raise ValueError(f"{name}: max_tokens {max_tokens}: the model has fixed positions for {limit}")
            embedder.max_tokens = limit
        return embedder.eval()

    def save_pretrained(self, folder: Path | str) -> None:
        """Write a folder that sentence-transformers, AutoModel, AutoTokenizer and servers of that layout load as is.

        Raises:
            OSError: the weights cannot be written, as on a full disk.
            ValueError: the saved tokenizer, read back, gives other ids (then a server would embed other vectors).
        """
        folder = Path(folder)
        try:
            self.backbone.save_pretrained(folder, state_dict=self.backbone.state_dict() | self._unused_head())
        except SafetensorError as error:
            raise OSError(f"{folder}: cannot write the weights ({error}); make room for them") from None
        tell_older_readers(folder)
        save_tokenizer(self.tokenizer, folder, self.max_tokens)
        specs = [dense.spec(f"{i + 2}_Dense") for i, dense in enumerate(self.heads)]
        for spec, dense in zip(specs, self.heads, strict=True):
            (folder / spec.folder).mkdir(exist_ok=True)
            weights = {f"linear.{key}": value.contiguous() for key, value in dense.linear.state_dict().items()}
            save_file(weights, folder / spec.folder / "model.safetensors")
        prompts = {"query": self.template.prompt("query"), "document": self.template.prompt("document"), **self.prompts}
        layout = Layout("", self.pooling, tuple(specs), self.normalize, self.max_tokens, prompts, self.template)
        write_layout(folder, layout, int(self.backbone.config.hidden_size))
