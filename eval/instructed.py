"""Instruction reranking over local data, scored as mteb scores FollowIR: how a changed instruction moves documents."""

from collections.abc import Mapping
from typing import Any, ClassVar

# mteb's own FollowIR tasks import this function; each carries its own loader, so there is no class to reuse.
from mteb._evaluators.retrieval_metrics import calculate_pmrr, evaluate_p_mrr_change
from mteb.abstasks import AbsTaskRetrieval


class InstructionReranking(AbsTaskRetrieval):
    """Each query comes twice, as `ID-og` and `ID-changed`, with the two instructions.

    p-MRR (Weller et al. 2024, FollowIR, eq. 1) is in [-1, 1]: 0 when the change of instruction moves nothing, positive
    when the documents that lost their relevance fall, negative when they rise.
    """

    changed_relevance: ClassVar[dict[str, list[str]]] = {}
    """query ID (without the side) -> documents relevant under the original instruction only."""

    by_query: tuple[float, ...] = ()
    """After a run: the p-MRR of each query alone, whose mean is the score."""

    def task_specific_scores(
        self,
        scores: dict[str, dict[str, float]],
        qrels: Mapping[str, Mapping[str, int]],
        results: dict[str, dict[str, float]],
        hf_split: str,
        hf_subset: str,
    ) -> dict[str, Any]:
        """mteb's hook for scores beyond the usual ones."""
        self.by_query = tuple(
            float(calculate_pmrr(results, results, {query: documents}))
            for query, documents in self.changed_relevance.items()
        )
        return evaluate_p_mrr_change(qrels, results, self.changed_relevance, self.k_values)
