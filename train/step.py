"""One training step, readable on one screen.

Shapes: N texts of the global batch, n of them on this rank, D student width, E teacher width.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from embedding.embedder import Embedder
from embedding.memory import drop_garbage
from embedding.mix import mix_int
from embedding.tokens import chunk_tokens
from train.batches import Batch, Sampler, Share, share
from train.clock import Clock
from train.distributed import gather_rows, rank, sum_over_ranks, whole, world_size
from train.losses import Loss, Own, asked_for, loss_part, projected_widths
from train.merge import Average
from train.optim import schedule_factor, set_learning_rate
from train.plan import TeacherVectors
from train.recipe import Stage
from train.spikes import SpikeConfig, SpikeGuard
from train.views import Views


@dataclass(frozen=True)
class Work:
    """What this rank does in one step: read ahead while the step before runs."""

    batch: Batch
    share: Share
    rows: list[np.ndarray]
    """Ids of this rank's texts, in the order of `share.mine_n`."""
    teacher_nE: Tensor | None


@dataclass(frozen=True)
class Memory:
    """How the machine is used; chosen once per run and kept in its checkpoints."""

    token_budget: int
    activation_bytes: float
    bytes_per_token: float
    packed: bool = False
    """Whether chunks run without padding, see `Embedder.packs`."""

    def __str__(self) -> str:
        """In words, for the log."""
        return f"chunks of {self.token_budget} tokens and {self.activation_bytes / 2**30:.3g} GiB of activations"

    def halved(self, longest: int) -> "Memory":
        """Half the token budget, as long as a text fits, and half the memory for activations.

        Raises:
            ValueError: chunks of one text, and no memory for activations, are already what there is.
        """
        half = self.token_budget // 2
        if half < longest and self.activation_bytes <= self.token_budget * self.bytes_per_token:
            raise ValueError(
                f"out of memory with chunks of {self.token_budget} tokens, and a text has {longest}; lower the stage's "
                "max_tokens, set compute.layer_checkpointing, or use a device with more memory"
            )
        budget = half if half >= longest else self.token_budget
        return replace(self, token_budget=budget, activation_bytes=self.activation_bytes / 2)

    def kept(self, chunks: Sequence[np.ndarray], longest_n: np.ndarray) -> int:
        """How many of the chunks may keep their activations."""
        tokens = np.cumsum([chunk_tokens(longest_n[chunk], packed=self.packed) for chunk in chunks])
        return int(np.searchsorted(tokens * self.bytes_per_token, self.activation_bytes, side="right"))


@dataclass
class TrainState:
    """Everything a step needs but its batch."""

    accelerator: Accelerator
    student: torch.nn.Module
    """The Student, wrapped for its ranks."""
    embedder: Embedder
    """The student's own embedder."""
    optimizer: torch.optim.Optimizer
    stage: Stage
    steps: int
    """Steps of the stage."""
    memory: Memory
    seed: int
    clock: Clock
    say: Callable[[str], None]
    average: Average | None = None
    guard: SpikeGuard = field(default_factory=lambda: SpikeGuard(SpikeConfig()))
    probe: bool = False
    """Whether the next step also measures the gradient norm of each loss."""

    def padded_tokens(self, work: Work) -> int:
        """Tokens the model computes for a batch, padding included, over all ranks (each pads alike)."""
        longest_n, packed = work.share.longest_n, self.memory.packed
        chunks = work.share.chunks(self.memory.token_budget, packed=packed)
        return world_size() * sum(chunk_tokens(longest_n[chunk], packed=packed) for chunk in chunks)


def prepare_work(sampler: Sampler, vectors: TeacherVectors | None, step: int) -> Work:
    """Draw a batch and read what this rank needs of it. Runs in the read-ahead thread."""
    batch = sampler.batch(step)
    mine = share(batch.length_N, rank(), world_size())
    texts = batch.text_N[mine.mine_n]
    teacher = None if vectors is None else torch.from_numpy(vectors(texts))
    return Work(batch, mine, [sampler.ids(int(text)) for text in texts], teacher)


def read_ahead(sampler: Sampler, vectors: TeacherVectors | None, steps: range) -> Iterator[Work]:
    """The work of each of some steps, at least one, the next one prepared while the current one runs."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as reader:
        coming = reader.submit(prepare_work, sampler, vectors, steps[0])
        for step in steps:
            work = coming.result()
            if step + 1 < steps.stop:
                coming = reader.submit(prepare_work, sampler, vectors, step + 1)
            yield work


def train_step(state: TrainState, work: Work) -> dict[str, float]:
    """One step; where the device runs out of memory, the token budget is halved and the step repeated.

    With several ranks the others are waiting in a collective by then, so the job ends, and says what to set.

    Raises:
        ValueError: see `attempt_step`; or out of memory with several ranks, or with chunks of a single text.
    """
    while True:
        try:
            return attempt_step(state, work)
        except torch.OutOfMemoryError as error:
            state.optimizer.zero_grad(set_to_none=True)
            halved = state.memory.halved(int(work.share.longest_n.max()))
            if world_size() > 1:
                gib = halved.activation_bytes / 2**30
                raise ValueError(
                    f"out of memory; set compute.token_budget to {halved.token_budget} and compute.activation_gib to "
                    f"{gib:.3g}"
                ) from error
            state.say(f"out of memory: {halved} from here on, and the step again")
            state.memory = halved
        drop_garbage()


def attempt_step(state: TrainState, work: Work) -> dict[str, float]:
    """Embed this rank's share, gather, lose, go back, update. Returns what the log says of it, the same on every rank:
    the global means of the loss and its terms, the gradient's norm, the rate; where it was probed, each term's share of
    the gradient; whether the step was left out.

    Raises:
        ValueError: the loss or the gradient is not finite too often in a row (`train.spikes`), or the weights are not.
    """
    stage, clock, step = state.stage, state.clock, work.batch.step
    torch.manual_seed(mix_int(state.seed, step, rank()) % 2**63)

    # ------------------------------------------------------------------ embed: chunk after chunk, one graph
    chunks = work.share.chunks(state.memory.token_budget, packed=state.memory.packed)
    kept = state.memory.kept(chunks, work.share.longest_n)
    with state.accelerator.autocast():
        order_n = np.concatenate(chunks)
        widths = projected_widths(stage.losses)
        vectors_nD, projected_VnE = state.student([[work.rows[i] for i in chunk] for chunk in chunks], kept, widths)
    back_n = torch.from_numpy(np.argsort(order_n)).to(vectors_nD.device)
    clock.lap("forward")

    # ------------------------------------------------------------------ gather: the only gradients that cross ranks
    ordered_nD, ordered_VnE = vectors_nD[back_n], projected_VnE[:, back_n]
    cuts = dict(zip(widths, ordered_VnE[1:], strict=False))
    everything = "teacher_of_all" in asked_for(stage.losses)
    views = make_views(work, ordered_nD, ordered_VnE[0], cuts, state.seed, gather_teacher=everything)
    clock.lap("communication")

    # ------------------------------------------------------------------ lose: parts of means over the global batch
    terms = {f"loss/{i}_{loss.kind}": loss_part(loss, views) for i, loss in enumerate(stage.losses)}
    total, weighted = _weighted(stage.losses, list(terms.values()), step, state.steps)
    if any(isinstance(loss, Own) for loss in stage.losses):
        total = total + 0.0 * projected_VnE.sum()  # DDP waits for the map's gradient, and one's own may not look at it
    norms = _gradient_norms(weighted, vectors_nD, stage.losses) if state.probe else {}
    clock.lap("loss")

    # ------------------------------------------------------------------ back: DDP averages over ranks, hence the factor
    state.accelerator.backward(total * world_size())
    clock.lap("backward")

    # ------------------------------------------------------------------ update
    norm = state.accelerator.clip_grad_norm_(state.student.parameters(), stage.clip)
    values = sum_over_ranks(torch.stack([total, *terms.values()])).tolist()
    metrics = dict(zip(["loss", *terms], values, strict=True)) | {"grad_norm": float(norm)} | norms
    skipped = state.guard.skips(metrics["grad_norm"] if np.isfinite(values).all() else math.inf)
    spoilt = skipped and not _finite(state.student)
    if state.guard.exhausted or spoilt:
        why = (
            "nor are the weights" if spoilt else "nor was it in the steps before; the weights are the last finite ones"
        )
        raise ValueError(
            f"stage {stage.name!r}, step {step}: the loss or gradient is not finite ({metrics}), {why}. Lower "
            "learning_rate or raise warmup, which is another training: give it another `name`, or --restart"
        )
    metrics["skipped"] = state.guard.skipped
    metrics["lr"] = stage.learning_rate * (factor := schedule_factor(stage, step, state.steps))
    set_learning_rate(state.optimizer, factor)
    if not skipped:
        state.optimizer.step()
        if state.average is not None:
            state.average.update()
    state.optimizer.zero_grad(set_to_none=True)
    clock.lap("optimizer")
    return metrics


def _finite(student: torch.nn.Module) -> bool:
    """Whether all weights are numbers: where they are not, leaving out steps mends nothing. Every rank must ask."""
    sums = torch.stack([whole(parameter.detach().float().sum()) for parameter in student.parameters()])
    return bool(sums.isfinite().all())


def make_views(
    work: Work,
    vectors_nD: Tensor,
    projected_nE: Tensor,
    cuts: Mapping[int, Tensor] | None = None,
    seed: int = 0,
    *,
    gather_teacher: bool = False,
) -> Views:
    """Gather the batch's texts and lay out what the losses look at; inputs in the order of `share.mine_n`.

    `gather_teacher`: the teacher's vectors of all texts too, N * E numbers on every rank.
    """
    batch, mine, device = work.batch, work.share, vectors_nD.device

    def tensor(x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).to(device, non_blocking=True)

    where_N = tensor(mine.where_N)
    part_n = np.where(mine.filler_n, 0, batch.part_N[mine.mine_n])
    teacher_nE = None if work.teacher_nE is None else work.teacher_nE.to(device, non_blocking=True)
    return Views(
        text_ND=gather_rows(vectors_nD.float())[where_N],
        part_N=tensor(batch.part_N),
        query_B=tensor(batch.query_B),
        document_K=tensor(batch.document_K),
        positive_B=tensor(batch.positive_B),
        negative_BH=tensor(batch.negative_BH),
        excluded_X2=tensor(batch.excluded_X2),
        query_group_B=tensor(batch.query_group_B),
        document_group_K=tensor(batch.document_group_K),
        graded_G2=tensor(batch.graded_G2),
        score_G=tensor(batch.score_G),
        rank=rank(),
        ranks=world_size(),
        seed=mix_int(seed, batch.step),
        local_nE=projected_nE.float(),
        local_part_n=tensor(part_n),
        teacher_nE=teacher_nE,
        teacher_NE=gather_rows(teacher_nE)[where_N] if gather_teacher and teacher_nE is not None else None,
        cuts={width: cut.float() for width, cut in (cuts or {}).items()},
    )


def _weighted(losses: Sequence[Loss], parts: Sequence[Tensor], step: int, steps: int) -> tuple[Tensor, list[Tensor]]:
    weighted = [loss.weight_at(step, steps) * part for loss, part in zip(losses, parts, strict=True)]
    return torch.stack(weighted).sum(), weighted


def _gradient_norms(weighted: Sequence[Tensor], vectors_nD: Tensor, losses: Sequence[Loss]) -> dict[str, float]:
    """The norm of each weighted loss's gradient with respect to the vectors of the global batch, before projection and
    gather: what the losses pull at the student with, at the cost of their own backward passes, without the model's."""
    if not vectors_nD.requires_grad:
        return {}  # the student is frozen, only the projection learns
    squares = []
    for part in weighted:
        grad = torch.autograd.grad(part, vectors_nD, retain_graph=True, allow_unused=True)[0]
        squares.append(vectors_nD.new_zeros(()) if grad is None else grad.float().square().sum())
    norms = sum_over_ranks(torch.stack(squares)).sqrt().tolist()
    return {f"grad/{i}_{loss.kind}": norm for (i, loss), norm in zip(enumerate(losses), norms, strict=True)}
