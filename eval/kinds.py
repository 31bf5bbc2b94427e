"""The nine kinds of task of MTEB(Multilingual, v2): mteb's name, the main metric, the default instruction."""

from typing import Literal, NamedTuple, get_args

Kind = Literal[
    "retrieval",
    "reranking",
    "instruction_reranking",
    "sts",
    "pair_classification",
    "classification",
    "multilabel_classification",
    "clustering",
    "bitext",
]
KIND_NAMES: tuple[Kind, ...] = get_args(Kind)
SEARCHED: tuple[Kind, ...] = ("retrieval", "reranking", "instruction_reranking")
"""Where queries are asked among documents."""


MtebType = Literal[
    "Retrieval",
    "Reranking",
    "InstructionReranking",
    "STS",
    "PairClassification",
    "Classification",
    "MultilabelClassification",
    "Clustering",
    "BitextMining",
]


class KindFacts(NamedTuple):
    """What is the same for every task of a kind."""

    mteb_type: MtebType
    metric: str
    """The main score most of mteb's own tasks of this kind use; higher is better, in [0, 1] or [-1, 1]."""
    instruction: str
    """Used when neither the suite nor the data names one: the sentences mteb and the Harrier model card use."""
    title: str
    """For tables and pictures."""
    is_change: bool = False
    """Whether the metric measures a change, around 0, of which no share can be kept."""


_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"

KINDS: dict[Kind, KindFacts] = {
    "retrieval": KindFacts("Retrieval", "ndcg_at_10", _SEARCH, "Retrieval"),
    "reranking": KindFacts("Reranking", "map_at_1000", _SEARCH, "Reranking"),
    "instruction_reranking": KindFacts(
        "InstructionReranking", "p-MRR", _SEARCH, "Instruction reranking", is_change=True
    ),
    "sts": KindFacts("STS", "cosine_spearman", "Retrieve semantically similar text", "STS"),
    "pair_classification": KindFacts(
        "PairClassification",
        "max_ap",
        "Retrieve text that is semantically similar to the given text",
        "Pair classification",
    ),
    "classification": KindFacts("Classification", "accuracy", "Classify user passages", "Classification"),
    "multilabel_classification": KindFacts(
        "MultilabelClassification", "accuracy", "Classify user passages", "Multilabel classification"
    ),
    "clustering": KindFacts("Clustering", "v_measure", "Identify categories in user passages", "Clustering"),
    "bitext": KindFacts("BitextMining", "f1", "Retrieve parallel sentences", "Bitext mining"),
}


def kind_of(mteb_type: str) -> Kind:
    """The kind of an official mteb task.

    Raises:
        ValueError: a type outside the nine, such as Summarization or an image task.
    """
    for kind, facts in KINDS.items():
        if facts.mteb_type == mteb_type:
            return kind
    raise ValueError(f"mteb tasks of type {mteb_type} are not supported; supported: {', '.join(_types())}")


def _types() -> list[str]:
    return [facts.mteb_type for facts in KINDS.values()]
