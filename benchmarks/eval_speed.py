"""How long does an evaluation take? `python -m benchmarks.eval_speed`: ours against mteb with sentence-transformers.

The suite is what every run holds out of its docstrings: one task of each kind, sharing texts as those of one domain do.
The same tasks, the same model folder, the same limit of tokens; loading models and data counts for neither. The peer's
batch size is the best of several on a sample of the suite's texts, found in this run. The sides take turns, and the
best of their rounds counts. The last JSON line has, for all-MiniLM-L6-v2 and for a small decoder with instructions:

ratio   peer's seconds / ours (the smaller of the two models')        expected 2.0 or more
first   the same for our first evaluation, which also plans and tokenizes

`--run runs/demo` adds `share`: the seconds of all evaluations in that training over its seconds; expected 0.05 at most.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import arguments, report, say
from benchmarks.eval_peers import TEACHER, decoder, instructed_peer, mteb_scores, plain_peer
from data_prep.harvest import harvest
from data_prep.heldout import write_docstring_tasks, write_instructions
from embedding.embedder import Embedder
from embedding.files import read_json, read_log
from embedding.instruction import BARE
from embedding.layout import resolve_model
from eval.encoder import requests_of
from eval.evaluate import evaluate
from eval.preserve import quiet
from eval.suite import Suite, SuiteConfig, load_suite

BATCH_SIZES = (8, 16, 32, 64, 128)
INSTRUCTION = "Given the first line of a docstring, retrieve the rest of the docstring"


def held_out(folder: Path, documents: int) -> Path:
    """The evaluation folder of a run on docstrings."""
    found = harvest(1, share=0.05, heldout=documents, workers=1).heldout
    tasks = write_docstring_tasks(folder, "docstrings", found, INSTRUCTION, max(2, documents * 2 // 5))
    write_instructions(folder, {f"{kind}/docstrings": task.instruction for kind, task in tasks.items()})
    return folder


def best_batch_size(encode: Callable[..., Any], texts: list[str], count: int) -> int:
    """The batch size with which sentence-transformers is fastest on so many of the texts."""
    sample = [texts[i] for i in np.random.default_rng(0).choice(len(texts), min(len(texts), count), replace=False)]
    encode(sample[:8], batch_size=8)  # the first call of a model sets itself up
    taken = {size: _seconds(partial(encode, sample, batch_size=size)) for size in BATCH_SIZES}
    say("  peer, batch size: " + ", ".join(f"{size} {seconds:.2f} s" for size, seconds in taken.items()))
    return min(taken, key=lambda size: taken[size])


def measure(name: str, model: Embedder, peer: Any, folder: Path, rounds: int, sample: int) -> dict[str, Any]:
    """Both sides on one suite, in turns; the peer's batch size is chosen on `sample` texts."""
    suite = load_suite(SuiteConfig(folder=folder))
    with quiet():
        asked = [text for entry in suite.tasks for request in requests_of(entry) for text in request.texts]
    batch_size = best_batch_size(peer.model.encode, sorted(set(asked)), sample)
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(_seconds(lambda: evaluate(model, suite)))
        theirs.append(_seconds(lambda: mteb_scores(peer, suite, batch_size)))
        say(f"  {name}: ours {ours[-1]:.1f} s, peer {theirs[-1]:.1f} s")
    return {
        "ratio": min(theirs) / min(ours),
        "first": min(theirs) / ours[0],
        "ours_s": min(ours),
        "peer_s": min(theirs),
        "peer_batch_size": batch_size,
        "texts_asked": len(asked),
        "texts_distinct": evaluate(model, suite)["texts"],
    }


def share_of_training(run: Path) -> dict[str, Any]:
    """What the evaluations inside a training took of it, both as the run timed them."""
    taken = [line["eval/seconds"] for line in read_log(run / "metrics.jsonl") if "eval/seconds" in line]
    training = read_json(run / "timings.json")["train"]
    return {"evaluations": len(taken), "seconds": sum(taken), "training_s": training, "share": sum(taken) / training}


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure, and print the ratios."""
    parser = arguments(__doc__)
    parser.add_argument("--documents", type=int, default=1000, help="documents of the corpus")
    parser.add_argument("--max-tokens", type=int, default=256, help="tokens of a text, for both sides")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side")
    parser.add_argument("--run", type=Path, help="a finished run, for evaluation's share of its training")
    parser.add_argument("--smoke", action="store_true", help="a few documents: shows that it runs, measures nothing")
    given = parser.parse_args()
    documents, rounds, sample = (60, 1, 16) if given.smoke else (given.documents, given.rounds, 256)
    with tempfile.TemporaryDirectory() as place:
        folder = held_out(Path(place) / "heldout", documents)
        teacher = Embedder.from_pretrained(TEACHER, template=BARE, max_tokens=given.max_tokens)
        student = decoder(Path(place) / "decoder", given.max_tokens, width=384)
        suite: Suite = load_suite(SuiteConfig(folder=folder))
        peers = {
            "minilm": (teacher, plain_peer(resolve_model(TEACHER), given.max_tokens)),
            "decoder": (student, instructed_peer(Path(place) / "decoder", suite)),
        }
        found = {name: measure(name, *both, folder, rounds, sample) for name, both in peers.items()}
    result: dict[str, Any] = {
        "benchmark": "eval_speed",
        "ratio": min(of["ratio"] for of in found.values()),
        "first": min(of["first"] for of in found.values()),
        "models": found,
    }
    if given.run is not None:
        result["share"] = share_of_training(given.run)
    report(result, save=given.save)


if __name__ == "__main__":
    main()
