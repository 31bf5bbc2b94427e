"""Training steps per second and the memory they take: ours against sentence-transformers, the same work on both sides.

    python -m benchmarks.train_throughput [--full] [--smoke]

The same model, the same pairs in the same logical batches, InfoNCE over the batch and AdamW on both sides, dropout 0,
texts tokenized outside of the clock; the tokens both sides count must be equal. Each side is a process of its own with
all threads, and they take turns, step by step. The peer is a plain loop over its loss (its Trainer would only add to
it): MultipleNegativesRankingLoss, or its cached form with the mini-batch, in texts or in tokens, that is fastest in
this run, searched anew for each kind of text. Models: all-MiniLM-L6-v2 and, with `--full`, also its batches of 256; a
small Qwen3 decoder.

ratio_docstrings_256   pairs/s, ours / theirs: docstrings cut at 256 tokens (batch 64)         aim 4.0
ratio_docstrings_512   at 512 tokens                                                           aim 6.0
ratio_uniform          texts of exactly 128 tokens: no padding to save                         aim 1.0
memory_ratio           peak memory at 256 tokens, ours / the faster of theirs                  aim 0.5
gemm_fraction          our real tokens' operations / seconds / the best fp32 matrix rate       aim 0.6
ratio_bound            the ratio_docstrings_256 of a step that ran all of its operations at that matrix rate

Peak memory is the process's largest resident set, imports and model included.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator

from benchmarks.common import arguments, matrix_rate, report, say
from benchmarks.pairs import TEACHER, docstring_pairs, load_inputs, ranking_rows, write_inputs
from data_prep.build import DataConfig
from data_prep.teacher import TeacherConfig
from embedding.embedder import Embedder
from embedding.layout import resolve_model
from embedding.memory import keep_freed_memory
from train.batches import Batch
from train.calibrate import calibrate
from train.clock import Clock
from train.losses import InfoNCE
from train.plan import plan_stages
from train.recipe import BuiltStudent, ComputeConfig, PretrainedStudent, Recipe, Stage, StudentConfig
from train.step import Memory, TrainState, prepare_work, train_step
from train.student import build_student, training_flops

TEMPERATURE = 0.05
RATE = 1e-5
MINI_BATCHES = (1, 2, 4, 8, 16, 32)
MINI_TOKENS = (512, 1_024, 2_048, 4_096)
UNIFORM = 128
"""Tokens of every text of the control."""


@dataclass(frozen=True)
class Case:
    """One kind of work."""

    name: str
    folder: str
    model: str
    max_tokens: int
    batch: int
    steps: int
    activation_gib: float | None = None


# ------------------------------------------------------------------------------------------------------------- our side


class Ours:
    """train.step as the loop drives it, the token budget and memory calibrated as the loop does."""

    def __init__(self, case: Case) -> None:
        keep_freed_memory()
        inputs = replace(load_inputs(Path(case.folder)), vectors=None)
        student = StudentConfig(start=PretrainedStudent(model=case.model), max_tokens=case.max_tokens)
        stage = Stage(
            name="pace",
            steps=case.steps,
            batch_size=case.batch,
            max_tokens=case.max_tokens,
            learning_rate=RATE,
            losses=[InfoNCE(temperature=TEMPERATURE)],
        )
        compute = ComputeConfig(activation_gib=case.activation_gib)
        recipe = Recipe(
            name="pace",
            data=DataConfig(),
            teacher=TeacherConfig(model=TEACHER),
            student=student,
            stages=[stage],
            compute=compute,
        )
        self.sampler = plan_stages(recipe, inputs)[0].sampler
        module = build_student(student, Embedder.from_pretrained(TEACHER), 0, project=False).train()
        memory = calibrate(module, prepare_work(self.sampler, None, 0).rows, compute)
        optimizer = torch.optim.AdamW([{"params": list(module.parameters()), "base_lr": RATE}], lr=RATE, fused=True)
        accelerator = Accelerator(cpu=True)
        self.state = TrainState(
            accelerator, module, module.embedder, optimizer, stage, case.steps, memory, 0, Clock(), say
        )

    def batch(self, step: int) -> Batch:
        """The global batch of a step, which both sides train on."""
        return self.sampler.batch(step)

    def step(self, step: int) -> dict[str, float]:
        """Train on one batch: seconds, real tokens, computed tokens, floating-point operations needed."""
        work = prepare_work(self.sampler, None, step)
        begin = time.perf_counter()
        train_step(self.state, work)
        return {
            "seconds": time.perf_counter() - begin,
            "tokens": int(work.batch.length_N.sum()),
            "computed": self.state.padded_tokens(work),
            "flops": training_flops(self.state.embedder, work.batch.length_N),
        }

    def configuration(self) -> dict[str, Any]:
        """What was chosen for this machine."""
        memory: Memory = self.state.memory
        return {"token_budget": memory.token_budget, "activation_gib": round(memory.activation_bytes / 2**30, 2)}


# ----------------------------------------------------------------------------------------------------------- their side


class Theirs:
    """sentence-transformers: its model, its losses, AdamW; nothing between them that costs."""

    def __init__(self, case: Case) -> None:
        from sentence_transformers import SentenceTransformer

        inputs = load_inputs(Path(case.folder))
        self.ours = plan_stages(_sampling_recipe(case), replace(inputs, vectors=None))[0].sampler
        self.texts = inputs.texts
        self.model = SentenceTransformer(str(resolve_model(case.model)), device="cpu")
        self.model.max_seq_length = case.max_tokens
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, fused=True)
        self.choices = _peer_losses(self.model)
        self.chosen = "plain"

    def step(self, step: int) -> dict[str, float]:
        """Train on one batch: seconds, real tokens, tokens with the padding of the whole batch."""
        batch = self.ours.batch(step)
        texts = [batch.text_N[batch.query_B], batch.text_N[batch.document_K[batch.positive_B]]]
        features = [self.model.preprocess([self.texts.text(int(row)) for row in side]) for side in texts]
        loss = self.choices[self.chosen]
        begin = time.perf_counter()
        loss(features, None).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {
            "seconds": time.perf_counter() - begin,
            "tokens": sum(int(side["attention_mask"].sum()) for side in features),
            "padded": sum(side["attention_mask"].numel() for side in features),
        }

    def choose(self, name: str) -> None:
        """Train with this loss from here on."""
        self.chosen = name

    def configuration(self) -> dict[str, Any]:
        """What is being run."""
        return {"loss": self.chosen, "attention": self.model[0].auto_model.config._attn_implementation}


def _peer_losses(model: Any) -> dict[str, Callable[..., torch.Tensor]]:
    from sentence_transformers.sentence_transformer import losses

    scale = 1 / TEMPERATURE
    cached = losses.CachedMultipleNegativesRankingLoss
    return (
        {"plain": losses.MultipleNegativesRankingLoss(model, scale=scale)}
        | {f"cached, {n} texts": cached(model, scale=scale, mini_batch_size=n) for n in MINI_BATCHES}
        | {f"cached, {n} tokens": cached(model, scale=scale, mini_batch_num_tokens=n) for n in MINI_TOKENS}
    )


def _sampling_recipe(case: Case) -> Recipe:
    stage = Stage(name="pace", steps=case.steps, batch_size=case.batch, max_tokens=case.max_tokens, losses=[InfoNCE()])
    student = StudentConfig(start=PretrainedStudent(model=case.model), max_tokens=case.max_tokens)
    teacher = TeacherConfig(model=TEACHER)
    return Recipe(name="pace", data=DataConfig(), teacher=teacher, student=student, stages=[stage])


# ----------------------------------------------------------------------------------------------------- one process each


class Side:
    """A side in its own process, which does one thing when asked and is idle otherwise."""

    def __init__(self, kind: type[Ours] | type[Theirs], case: Case) -> None:
        context = get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(kind, case, other, torch.get_num_threads()), daemon=True)
        self.process.start()
        other.close()
        self.pipe.recv()  # ready

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the side, or `peak_gib` of its process."""
        self.pipe.send((method, arguments))
        return self.pipe.recv()

    def end(self) -> None:
        """Let the process go, and with it its memory."""
        self.pipe.close()
        self.process.join()


def _serve(kind: type[Ours] | type[Theirs], case: Case, pipe: Connection, threads: int) -> None:
    torch.set_num_threads(threads)
    side = kind(case)
    pipe.send("ready")
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(_peak_gib() if method == "peak_gib" else getattr(side, method)(*arguments))


def _peak_gib() -> float:
    """The largest resident set since the last call, in GiB; Linux only."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): resets the peak
    return peak / 2**20


# ------------------------------------------------------------------------------------------------------------ comparing


def search_peer(theirs: Side, step: int) -> tuple[str, str, dict[str, float]]:
    """The fastest of the peer's cached settings, the faster of that and its plain loss, and seconds of each."""
    seconds = {}
    for name in ["plain", *(f"cached, {n} texts" for n in MINI_BATCHES), *(f"cached, {n} tokens" for n in MINI_TOKENS)]:
        theirs.ask("choose", name)
        seconds[name] = theirs.ask("step", step)["seconds"]
    cached = min((name for name in seconds if name != "plain"), key=lambda name: seconds[name])
    best = min(seconds, key=lambda name: seconds[name])
    say("  peer: " + ", ".join(f"{name} {taken:.1f} s" for name, taken in seconds.items()))
    return best, cached, seconds


def measure(case: Case, *, low_memory: bool = False) -> dict[str, Any]:
    """Both sides on one case, in turns, after one step each that does not count."""
    theirs = Side(Theirs, case)
    theirs.ask("step", 0)
    best, _, seconds = search_peer(theirs, 0)
    theirs.ask("choose", best)
    ours = Side(Ours, case)
    small = Side(Ours, replace(case, activation_gib=1e-3)) if low_memory else None
    sides = {"ours": ours, "theirs": theirs} | ({"ours_recomputed": small} if small else {})
    for side in sides.values():
        side.ask("peak_gib")  # from here on: steps, without the calibration and the search
        side.ask("step", 0)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for step in range(1, case.steps):
        for name, side in sides.items():
            rounds[name].append(side.ask("step", step))
    tokens = {name: [taken["tokens"] for taken in found] for name, found in rounds.items()}
    assert all(counts == tokens["ours"] for counts in tokens.values()), f"the sides counted other tokens: {tokens}"
    result: dict[str, Any] = {
        name: {
            "pairs_per_s": case.batch / median(taken["seconds"] for taken in found),
            "peak_gib": sides[name].ask("peak_gib"),
            **sides[name].ask("configuration"),
        }
        for name, found in rounds.items()
    }
    result["ours"]["padding"] = 1 - sum(tokens["ours"]) / sum(taken["computed"] for taken in rounds["ours"])
    result["theirs"]["padding_of_plain"] = 1 - sum(tokens["theirs"]) / sum(
        taken["padded"] for taken in rounds["theirs"]
    )
    result["theirs"]["search_s"] = seconds
    result["flops_per_s"] = median(taken["flops"] / taken["seconds"] for taken in rounds["ours"])
    result["flops_per_pair"] = sum(taken["flops"] for taken in rounds["ours"]) / case.batch / (case.steps - 1)
    result["tokens_per_pair"] = sum(tokens["ours"]) / case.batch / (case.steps - 1)
    result["ratio"] = result["ours"]["pairs_per_s"] / result["theirs"]["pairs_per_s"]
    result["ratio_to_plain"] = seconds["plain"] / seconds[best] * result["ratio"]
    for side in sides.values():
        side.end()
    facts = ", ".join(
        f"{name} {result[name]['pairs_per_s']:.2f} pairs/s {result[name]['peak_gib']:.2f} GiB" for name in sides
    )
    say(f"{case.name}: {facts}; peer's best: {best}; ratio {result['ratio']:.2f}")
    return result


def write_texts(folder: Path, pairs: Sequence[tuple[str, str]], model: Embedder) -> str:
    """The tables of some pairs, tokenized for the model."""
    write_inputs(folder, ranking_rows(pairs), model, vectors=False)
    return str(folder)


def uniform_pairs(model: Embedder, count: int) -> list[tuple[str, str]]:
    """Pairs of which both texts have at least UNIFORM tokens: bodies of two docstrings."""
    bodies = list(dict.fromkeys(body for _, body in docstring_pairs(12 * count)))
    long = [
        body
        for body, ids in zip(bodies, model.tokenize(bodies, [""] * len(bodies)), strict=True)
        if len(ids) >= UNIFORM
    ]
    return list(zip(long[:count], long[count : 2 * count], strict=True))


def small_decoder(folder: Path) -> Path:
    """A Qwen3 of four layers over MiniLM's vocabulary, random weights, saved as a model folder."""
    start = BuiltStudent(layers=4, width=384, heads=6, kv_heads=2, head_dim=64, ffn=1024)
    teacher = Embedder.from_pretrained(TEACHER)
    student = build_student(StudentConfig(start=start), teacher, 0, project=False)
    student.embedder.template = teacher.template
    student.embedder.save_pretrained(folder)
    return folder


def main() -> None:
    """Measure all cases, and print the ratios."""
    parser = arguments(__doc__)
    parser.add_argument("--full", action="store_true", help="also batches of 256, and the decoder at 512 tokens")
    parser.add_argument("--smoke", action="store_true", help="tiny batches: shows that it runs, measures nothing")
    given = parser.parse_args()
    size, steps = (4, 2) if given.smoke else (64, 5)
    rate = matrix_rate(seconds=0.05) if given.smoke else matrix_rate()
    say(f"fp32 matrix rate: {rate / 1e9:.0f} GFLOP/s")
    with TemporaryDirectory() as place:
        root = Path(place)
        minilm = Embedder.from_pretrained(TEACHER)
        pairs = _distinct(docstring_pairs(80 if given.smoke else 4_096))
        docstrings = write_texts(root / "docstrings", pairs, minilm)
        uniform = write_texts(root / "uniform", uniform_pairs(minilm, 2 * size if given.smoke else 256), minilm)
        decoder = str(small_decoder(root / "decoder"))
        decoded = write_texts(root / "decoded", pairs, Embedder.from_pretrained(decoder))
        base = Case("docstrings_256", docstrings, TEACHER, 256, size, steps)
        cases = [
            base,
            replace(base, name="docstrings_512", max_tokens=512),
            replace(base, name="uniform", folder=uniform, max_tokens=UNIFORM),
            replace(base, name="decoder_256", folder=decoded, model=decoder),
        ]
        if given.full:
            cases += [
                replace(base, name="docstrings_256_batch_256", batch=256),
                replace(base, name="docstrings_512_batch_256", batch=256, max_tokens=512),
                replace(base, name="decoder_512", folder=decoded, model=decoder, max_tokens=512),
            ]
        found = {case.name: measure(case, low_memory=case is base) for case in cases}
    first = found["docstrings_256"]
    report(
        {
            "benchmark": "train_throughput",
            "ratio_docstrings_256": first["ratio"],
            "ratio_docstrings_512": found["docstrings_512"]["ratio"],
            "ratio_uniform": found["uniform"]["ratio"],
            "memory_ratio": first["ours"]["peak_gib"] / first["theirs"]["peak_gib"],
            "memory_ratio_recomputed": first["ours_recomputed"]["peak_gib"] / first["theirs"]["peak_gib"],
            "ratio_recomputed": first["ours_recomputed"]["pairs_per_s"] / first["theirs"]["pairs_per_s"],
            "gemm_fraction": first["flops_per_s"] / rate,
            "ratio_bound": rate / first["flops_per_pair"] / first["theirs"]["pairs_per_s"],
            "matrix_gflops": rate / 1e9,
            "cases": found,
        },
        save=given.save,
    )


def _distinct(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pairs that share no text: else our side would embed it once and theirs twice."""
    seen: set[str] = set()
    kept = []
    for query, body in pairs:
        if query not in seen and body not in seen and query != body:
            seen |= {query, body}
            kept.append((query, body))
    return kept


if __name__ == "__main__":
    main()
