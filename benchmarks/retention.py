"""What fewer layers keep: students with 3, 2 and 1 of the 6 layers of all-MiniLM-L6-v2.

    python -m benchmarks.retention [--full] [--layers 3 2 1] [--minutes 4] [--seeds 0] [--work FOLDER] [--smoke]

The recipe is `configs/experiments/retention.yaml`: the last layers of the teacher, those below folded into the token
embeddings, brought back to its vectors on English pairs and sentences, and measured on English tasks of six kinds
(EYAS_DATA). The minutes are those of the training; the teacher's pass over the texts is done once for all. How many
steps fill them follows from a short run for each depth.
The default is a first look: 4 minutes each, a tenth of the text, one seed. `--full`: an hour each, all text, three
seeds; that takes ten hours, and goes on where it was when it is killed.

Prints one JSON line last: `layers_3`, `layers_2`, `layers_1` (the mean over kinds and seeds of student / teacher),
`sd` of each over the seeds, `worst_kind` and `untrained` of each.
"""

from typing import Any

from benchmarks.common import arguments, report, say
from benchmarks.recipes import SMOKE_STEPS, Experiment, kept, planned, protocol, recipe_options


def main() -> None:
    """Run it all."""
    options = arguments(__doc__)
    recipe_options(options)
    depths = protocol(full=True).retention.layers
    options.add_argument("--layers", type=int, nargs="+", choices=depths, default=depths, help="default: all")
    given = options.parse_args()
    fixed = planned(given, "retention")
    whole = Experiment.of("retention", given, fixed.retention.cut)
    found: dict[int, dict[str, Any]] = {}
    for depth in given.layers:
        experiment = whole.with_settings(f"student.start.keep={depth}")
        pace = experiment.pace(fixed.pace_steps)
        steps = SMOKE_STEPS if given.smoke else pace.steps(60 * given.minutes)
        say(f"{depth} layers, {1 / pace.seconds_per_token:,.0f} tokens/s: {steps} steps a run")
        cards = [experiment.finished(f"layers-{depth}-s{seed}", seed, steps) for seed in given.seeds]
        found[depth] = kept(cards) | {"pace": pace.__dict__}
    result: dict[str, Any] = {"benchmark": "retention", "full": given.full}
    result |= {f"layers_{depth}": of["retention"] for depth, of in found.items()}
    for key in ("sd", "worst_kind", "untrained"):
        result[key] = {f"layers_{depth}": of[key] for depth, of in found.items()}
    result |= {"minutes": given.minutes, "seeds": given.seeds}
    result["students"] = {f"layers_{depth}": of for depth, of in found.items()}
    report(result, save=given.save)


if __name__ == "__main__":
    main()
