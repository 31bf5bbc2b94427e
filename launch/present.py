"""Whether what a finished run was made from is still what lies there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from embedding.files import expanded, fingerprint, read_json, stamps
from embedding.layout import resolve_model
from eval.suite import SuiteConfig
from launch.prepared import prepared_facts, tool_facts
from launch.workspace import Workspace
from train.plan import own_losses
from train.recipe import BuiltStudent, Recipe


class Present:
    """What lies now where recipes say: their data, their suite and what scores it, the folder that their student starts
    from, their own losses, the model they mine with. Each is read once, since all of it is."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.found: dict[str, str | None] = {}

    def changed(self, recipe: Recipe, steps: Path) -> str:
        """Which of them are no longer what a finished run was made from, going by its `steps`; "" where all are.

        What cannot be read any more is said, once, and taken to be unchanged: a result outlives its data.
        """
        # Not of run.json, which speaks of the last command: that may have embedded new data and trained nothing.
        training = read_json(steps / "export.json")["made_from"]["training"]
        trained, scored = training["inputs"], read_json(steps / "evaluate.json")["made_from"]["suite"]
        start, suite, mine = recipe.student.start, recipe.suite, recipe.mine
        looks: dict[str, tuple[Any, Callable[[], str | None], str | None]] = {
            "data": ([recipe.data, suite], lambda: _data_now(recipe), trained["data"]),
            "suite": ([suite, scored], lambda: _suite_now(suite, scored), fingerprint(scored)),
            "student's start": (start, lambda: _start_now(recipe), trained.get("start")),
            "own loss": (recipe.stages, lambda: fingerprint(own_losses(recipe)), fingerprint(training.get("own", {}))),
        }
        if mine is not None and mine.model is not None:
            model, was = mine.model, read_json(steps / "mine.json")["made_from"]["model"]
            looks["mining model"] = (model, lambda: fingerprint(stamps(resolve_model(model))), fingerprint(was))
        return " and ".join(
            f"its {name}" for name, (of, look, was) in looks.items() if self._now(name, of, look) not in (None, was)
        )

    def _now(self, name: str, of: Any, look: Callable[[], str | None]) -> str | None:
        asked = fingerprint([name, of])
        if asked not in self.found:
            try:
                self.found[asked] = look()
            except (ValueError, OSError) as error:
                self.found[asked] = None
                self.say(f"whether the {name} changed cannot be told, so what is finished is taken as it is: {error}")
        return self.found[asked]


def _data_now(recipe: Recipe) -> str:
    _require_folder(recipe.suite)  # whose texts are kept out of the data; of a folder that is gone that would be none
    return fingerprint(prepared_facts(recipe))


def _suite_now(suite: SuiteConfig, before: dict[str, Any]) -> str:
    """Without a folder its files are those that the data held out, which tells for itself."""
    _require_folder(suite)
    from launch.scoring import suite_facts  # mteb takes seconds

    return fingerprint({**before, **(suite_facts(suite, suite.folder) if suite.folder else tool_facts(suite))})


def _require_folder(suite: SuiteConfig) -> None:
    if suite.folder is not None and not suite.folder.is_dir():
        raise ValueError(f"{suite.folder} is not a folder; expected the suite's data there")


def _start_now(recipe: Recipe) -> str | None:
    """None where it is no folder: the teacher, a package, or a model of the hub, which is not asked."""
    start = recipe.student.start
    name = start.tokenizer if isinstance(start, BuiltStudent) else start.model
    return Workspace(recipe).start.get("start") if Path(expanded(name)).is_dir() else None
