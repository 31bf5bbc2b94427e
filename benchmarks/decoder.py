"""A decoder from nothing in half an hour: what a causal student of at most 19M parameters keeps of its teacher.

    python -m benchmarks.decoder [--minutes 30] [--seeds 0 1 2] [--work FOLDER] [--smoke] [--save]

The recipe is `configs/experiments/decoder.yaml`: a Qwen3-shaped student over the teacher's vocabulary learns from
all-MiniLM-L6-v2 on English pairs and sentences, and is measured on English tasks of six kinds (EYAS_DATA). The minutes
hold the teacher's pass over the texts and the training; preparing, tokenizing and the evaluation come on top, and are
reported by each run. How many steps fill the minutes follows from a short run before.

Prints one JSON line last; `retention` is the mean over the kinds of student / teacher, over the seeds.
"""

from benchmarks.common import arguments, report, say
from benchmarks.recipes import SMOKE_STEPS, Experiment, kept, protocol, recipe_options

MOST_PARAMETERS = 19_000_000


def main() -> None:
    """Run it all."""
    fixed = protocol()
    options = arguments(__doc__)
    recipe_options(options, fixed, fixed.decoder.minutes)
    given = options.parse_args()
    experiment = Experiment.of("decoder", given)
    pace = experiment.pace(fixed.pace_steps)
    steps = SMOKE_STEPS if given.smoke else pace.steps(60 * given.minutes - pace.vector_seconds)
    say(f"vectors {pace.vector_seconds:.0f} s, {1 / pace.seconds_per_token:,.0f} tokens/s: {steps} steps a run")
    seeds = given.seeds[:1] if given.smoke else given.seeds
    found = kept([experiment.finished(f"decoder-s{seed}", seed, steps) for seed in seeds])
    parameters = found["parameters"]["student"]
    if parameters > MOST_PARAMETERS:
        raise ValueError(f"the student has {parameters:,} parameters, more than {MOST_PARAMETERS:,}")
    found |= {"minutes": given.minutes, "seeds": seeds, "vector_seconds": pace.vector_seconds, "pace": pace.__dict__}
    report({"benchmark": "decoder", **found}, save=given.save)


if __name__ == "__main__":
    main()
