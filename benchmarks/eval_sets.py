"""The fixed subset of the data sets that the evaluation benchmarks run on, and small sets of the two kinds it lacks."""

import os
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.docstrings import Docstring
from data_prep.harvest import harvest

TASKS = [
    "retrieval/scifact",
    "retrieval/cosqa",
    "retrieval/xquad_ar",
    "retrieval/mlqa_ctx-zh_q-en",
    "reranking/liveqa_med",
    "reranking/xquad_en_answer_sentence",
    "sts/stsb_en-test",
    "sts/stsb_de-test",
    "sts/korsts-test",
    "pair_classification/rqe_amia2016-test",
    "pair_classification/pawsx_fr-dev",
    "classification/snips",
    "classification/sib200_hin",
    "clustering/arxiv_titles",
    "clustering/stackoverflow_titles",
    "bitext/pud",
]
"""Seven kinds, more than ten languages; `instruction_reranking` and `multilabel_classification` are derived below.

Left out on purpose: sets in which a small English vocabulary turns different texts into the same tokens
(`reranking/jcommonsenseqa_valid`, single Japanese words). Their vectors tie, and rounding decides the ranking."""


def data_folder() -> Path:
    """The folder of evaluation data.

    Raises:
        SystemExit: EYAS_DATA names none.
    """
    folder = os.environ.get("EYAS_DATA", "")
    if not Path(folder).is_dir() or not folder:
        raise SystemExit("set EYAS_DATA to the folder of data sets that this benchmark runs on")
    return Path(folder)


def derive(folder: Path, pairs: int = 400) -> Path:
    """Write an instruction reranking and a multilabel set over docstrings of the installed packages to `folder`."""
    found = harvest(pairs, workers=1).train
    _instructed(folder, found)
    sizes = Counter(pair.package for pair in found)
    for at, split in enumerate(("train", "test")):
        # every second pair of the frequent packages, so that both sides have all of them
        chosen = [p for package, size in sizes.items() if size >= 8 for p in found if p.package == package][at::2]
        labels: list[object] = [[pair.package, "long" if len(pair.body.split()) > 40 else "short"] for pair in chosen]
        path = folder / "multilabel_classification" / f"docstrings-{split}.parquet"
        _write(path, text=[pair.body for pair in chosen], label=labels)
    return folder


def _instructed(folder: Path, pairs: list[Docstring]) -> None:
    """A summary asks first for anything of its module, then for its own documentation alone."""
    modules: dict[str, list[Docstring]] = defaultdict(list)
    for pair in pairs:
        modules[pair.module].append(pair)
    rows: dict[str, list[object]] = defaultdict(list)
    for at, pair in enumerate(pairs):
        siblings = [other.body for other in modules[pair.module] if other.body != pair.body][:4]
        strangers = [other.body for other in pairs[at + 1 :] + pairs[:at] if other.module != pair.module][:6]
        if siblings:
            rows["query"].append(pair.summary)
            rows["instruction"].append(f"Anything documented in the module {pair.module} is relevant.")
            rows["changed_instruction"].append("Only the documentation of exactly this function or class is relevant.")
            rows["positive"].append([pair.body])
            rows["dropped"].append(siblings)
            rows["negative"].append(strangers)
    _write(folder / "instruction_reranking" / "docstrings.parquet", **rows)


def _write(path: Path, **columns: list[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
