"""Which checkpoint of a finished training becomes the model."""

from launch.steps import Ledger
from launch.workspace import Workspace
from train.checkpoint import Checkpoint, newest_checkpoint


def chosen(at: Workspace, ledger: Ledger) -> Checkpoint:
    """The last checkpoint, or the one that `tracking` chooses by scores; says which.

    Raises:
        ValueError: it is gone, or the training kept none that would do.
    """
    tracking = at.recipe.tracking
    last, notes = newest_checkpoint(at.checkpoints, at.training_facts())
    for note in notes:
        ledger.say("", note)
    if last is None or last.step != at.results["train"]["steps"]:
        ledger.forget("train")
        raise ValueError(f"{at.checkpoints}: the last checkpoint is gone or damaged; run it again")
    floor, kept = tracking.floor, last.facts["best"]
    if floor is not None and kept is None:
        measured = last.facts.get("means") is not None
        why = "already the first evaluation was below it" if measured else "this training made no evaluation"
        raise ValueError(
            f"tracking.floor {floor}: {why}; no model is left; lower the learning rate or evaluate more often, "
            "and train with --restart"
        )
    if not tracking.chooses:
        return last
    if kept is None:
        ledger.say("", "this training made no evaluation to choose by: the last checkpoint is the model")
        return last
    step, mean = int(kept[0]), float(kept[1])
    other_rule = (floor is None) != (last.facts.get("floor", floor) is None)
    other_rule |= last.facts.get("judge", at.judge) != at.judge
    if other_rule or (floor is not None and mean < floor * last.facts["means"][0]):
        raise ValueError(
            f"{at.checkpoints}: the checkpoint of step {step} was kept by another rule than there is now "
            "(tracking.export, floor, evaluate_rows, or the suite); take that one back, or train with --restart"
        )
    found, _ = newest_checkpoint(at.checkpoints, at.training_facts(), step)
    if found is None:
        raise ValueError(
            f"{at.checkpoints}: the checkpoint of step {step}, the best one, is gone or damaged; set "
            "tracking.export=last, or train with --restart"
        )
    why = "had the best Mean(TaskType)" if floor is None else "is the last one above the floor"
    ledger.say("", f"step {step} {why}")
    return found
