"""Texts to id rows, once for each student tokenizer: the training loop only reads them."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from data_prep.tables import TOKENS, Ragged, Texts, Tokens, write_table
from data_prep.units import cut_units, text_bytes
from embedding.files import made_before, new_folder, read_manifest, write_manifest
from embedding.instruction import Template
from embedding.tokens import specials, tokenize


def tokens_fingerprint(data: Path, tokenizer: PreTrainedTokenizerBase, template: Template) -> dict[str, Any]:
    """What a tokens table is made from: the texts, the tokenizer and the template.

    Raises:
        ValueError: there is no prepared data at `data`.
    """
    manifest = read_manifest(data)
    if manifest is None:
        raise ValueError(f"{data}: no prepared data here (no manifest.json); run the prepare step first")
    rules = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]
    return {"data": manifest["fingerprint"], "tokenizer": rules, "template": template.model_dump()}


def tokenize_texts(data: Path, tokenizer: PreTrainedTokenizerBase, template: Template, out: Path) -> Tokens:
    """Write the ids of prompt + text + special tokens of every text of `data`, whole, to `out`; then load them.

    Nothing is done where `out` was made from the same texts, tokenizer and template.
    """
    made_from = tokens_fingerprint(data, tokenizer, template)
    if made_before(out, made_from) is None:
        texts = Texts.load(data / "texts")
        with new_folder(out, made_from) as folder:
            write_table(folder, TOKENS, _batches(texts, tokenizer, template))
            write_manifest(folder, made_from, texts=len(texts), suffix=len(specials(tokenizer).after))
    return Tokens.load(out)


def _batches(texts: Texts, tokenizer: PreTrainedTokenizerBase, template: Template) -> Iterator[pa.RecordBatch]:
    for span in cut_units(text_bytes(texts)):  # long texts take much memory while they are tokenized
        prompts, raw = texts.prompted(template, np.arange(span.start, span.stop))
        ids = tokenize(tokenizer, prompts, raw)
        column = Ragged.of(np.concatenate(ids), np.array([len(row) for row in ids], dtype=np.int64)).to_arrow()
        yield pa.record_batch([column], schema=TOKENS)
