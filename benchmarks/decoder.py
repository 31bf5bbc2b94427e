"""A decoder from nothing in half an hour: what a causal student of at most 19M parameters keeps of its teacher.

    python -m benchmarks.decoder [--full] [--minutes 8] [--seeds 0] [--add] [--work FOLDER] [--smoke] [--save]

The recipe is `configs/experiments/decoder.yaml`: a Qwen3-shaped student over the teacher's vocabulary learns from
all-MiniLM-L6-v2 on English pairs and sentences, and is measured on English tasks of six kinds (EYAS_DATA). The minutes
hold the teacher's pass over the texts and the training; preparing, tokenizing and the evaluation come on top, and are
reported by each run. How many steps fill the minutes follows from a short run before.
The default is a first look: 8 minutes, a tenth of the text, one seed. `--full`: 30 minutes, all text, three seeds.
`--seeds 1 --add` joins what it finds to the runs of the saved result (`benchmarks.outcomes`).

Prints one JSON line last; `retention` is the mean over the kinds of student / teacher, over the seeds; `runs` has each.
"""

from benchmarks.common import arguments, report, saved_path, say
from benchmarks.outcomes import saved_runs, together
from benchmarks.recipes import SMOKE_STEPS, Experiment, planned, recipe_options

MOST_PARAMETERS = 19_000_000


def main() -> None:
    """Run it all."""
    options = arguments(__doc__)
    recipe_options(options, add=True)
    given = options.parse_args()
    fixed = planned(given, "decoder")
    experiment = Experiment.of("decoder", given, fixed.decoder.cut)
    pace = experiment.pace(fixed.pace_steps)
    vectors = pace.teacher_seconds()
    say(f"vectors {vectors:.0f} s, {1 / pace.seconds_per_token:,.0f} tokens/s")
    runs = []
    for seed in given.seeds:
        name, steps = f"decoder-s{seed}", SMOKE_STEPS if given.smoke else pace.steps(60 * given.minutes - vectors)
        runs.append(experiment.finished(name, seed, steps, pace, given.minutes))
        pace = pace.after(experiment.work / name)
    if given.add:
        path = saved_path("decoder", full=given.full)
        runs += saved_runs(path, None, experiment.made_from(given.minutes), besides=given.seeds)
    found = together(runs)
    parameters = found["parameters"]["student"]
    if parameters > MOST_PARAMETERS:
        raise ValueError(f"the student has {parameters:,} parameters, more than {MOST_PARAMETERS:,}")
    report({"benchmark": "decoder", "full": given.full, **found, "minutes": given.minutes}, save=given.save)


if __name__ == "__main__":
    main()
