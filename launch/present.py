"""Whether what a finished run was made from is still what lies there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from embedding.files import expanded, fingerprint, read_json
from eval.suite import SuiteConfig
from launch.prepared import prepared_facts
from launch.workspace import Workspace
from train.recipe import BuiltStudent, Recipe


class Present:
    """What lies now where recipes say: their data, the folder of their suite, the one that their student starts from.
    Each is read once, since all of it is."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.found: dict[str, str | None] = {}

    def changed(self, recipe: Recipe, steps: Path) -> str:
        """Which of them are no longer what a finished run was made from, going by its `steps`; "" where all are.

        What cannot be read any more is said, once, and taken to be unchanged: a result outlives its data.
        """
        # Not of run.json, which speaks of the last command: that may have embedded new data and trained nothing.
        trained = read_json(steps / "export.json")["made_from"]["training"]["inputs"]
        scored = read_json(steps / "evaluate.json")["made_from"]["suite"]["files"]
        start, suite = recipe.student.start, recipe.suite
        looks: dict[str, tuple[Any, Callable[[], str | None], str | None]] = {
            "data": ([recipe.data, suite], lambda: _data_now(recipe), trained["data"]),
            "suite": (suite, lambda: _suite_now(suite), scored),
            "student's start": (start, lambda: _start_now(recipe), trained.get("start")),
        }
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
    _suite_now(recipe.suite)  # whose texts are kept out of the data; of a folder that is gone that would be none
    return fingerprint(prepared_facts(recipe))


def _suite_now(suite: SuiteConfig) -> str | None:
    """None where it is held out of the data."""
    if suite.folder is not None and not suite.folder.is_dir():
        raise ValueError(f"{suite.folder} is not a folder; expected the suite's data there")
    from launch.scoring import suite_facts  # mteb takes seconds

    return None if suite.folder is None else str(suite_facts(suite, suite.folder)["files"])


def _start_now(recipe: Recipe) -> str | None:
    """None where it is no folder: the teacher, a package, or a model of the hub, which is not asked."""
    start = recipe.student.start
    name = start.tokenizer if isinstance(start, BuiltStudent) else start.model
    return Workspace(recipe).start.get("start") if Path(expanded(name)).is_dir() else None
