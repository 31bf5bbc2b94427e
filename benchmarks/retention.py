"""What fewer layers keep: students with 3, 2 and 1 of the 6 layers of all-MiniLM-L6-v2.

    python -m benchmarks.retention [--full] [--layers 3 2 1] [--minutes 4] [--seeds 0] [--add] [--work FOLDER] [--smoke]

The recipe is `configs/experiments/retention.yaml`: the last layers of the teacher, those below folded into the token
embeddings, brought back to its vectors on English pairs and sentences, and measured on English tasks of six kinds
(EYAS_DATA). The minutes are those of the training; the teacher's pass over the texts is done once for all. How many
steps fill them follows from a short run for each depth.
The default is a first look: 4 minutes each, a tenth of the text, one seed. `--full`: an hour each, all text, three
seeds; that takes ten hours, and goes on where it was when it is killed. A depth or a seed at a time: `--layers 1
--seeds 0 --add` joins what it finds to the runs of the saved result (`benchmarks.outcomes`).

Prints one JSON line last: `layers_3`, `layers_2`, `layers_1` (the mean over kinds and seeds of student / teacher),
`sd` of each over the seeds, `worst_kind` and `untrained` of each, and of each of the `students` its `runs`.
"""

from typing import Any

from benchmarks.common import arguments, report, saved_path, say
from benchmarks.outcomes import Outcome, saved_runs, together
from benchmarks.recipes import SMOKE_STEPS, Experiment, planned, protocol, recipe_options


def main() -> None:
    """Run it all."""
    options = arguments(__doc__)
    recipe_options(options, add=True)
    depths = protocol(full=True).retention.layers
    options.add_argument("--layers", type=int, nargs="+", choices=depths, default=depths, help="default: all")
    given = options.parse_args()
    fixed = planned(given, "retention")
    whole = Experiment.of("retention", given, fixed.retention.cut)
    found: dict[str, dict[str, Any]] = {}
    for depth in depths:
        experiment = whole.with_settings(f"student.start.keep={depth}")
        runs: list[Outcome] = []
        if depth in given.layers:
            pace = experiment.pace(fixed.pace_steps)
            say(f"{depth} layers, {1 / pace.seconds_per_token:,.0f} tokens/s")
            for seed in given.seeds:
                run, steps = f"layers-{depth}-s{seed}", SMOKE_STEPS if given.smoke else pace.steps(60 * given.minutes)
                runs.append(experiment.finished(run, seed, steps, pace, given.minutes))
                pace = pace.after(experiment.work / run)  # a fold reads among the texts of all steps to come
        name = f"layers_{depth}"
        if given.add:
            seeds = [of["seed"] for of in runs]
            path = saved_path("retention", full=given.full)
            runs += saved_runs(path, name, experiment.made_from(given.minutes), besides=seeds)
        if runs:
            found[name] = together(runs)
    result: dict[str, Any] = {"benchmark": "retention", "full": given.full}
    result |= {name: of["retention"] for name, of in found.items()}
    for key in ("sd", "worst_kind", "untrained"):
        result[key] = {name: of[key] for name, of in found.items()}
    report({**result, "minutes": given.minutes, "students": found}, save=given.save)


if __name__ == "__main__":
    main()
