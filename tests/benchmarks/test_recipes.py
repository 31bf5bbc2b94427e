"""The benchmarks of recipes, at their smallest size: real runs of the product, in processes of their own."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import RESULTS
from benchmarks.outcomes import outcome, saved_runs, together
from benchmarks.recipes import Experiment, Pace, product, protocol, steps_logged
from embedding.config import load_config
from train.recipe import Recipe

from .conftest import smoke


@pytest.mark.timeout(900)
def test_a_decoder_is_measured_and_a_second_call_does_nothing_again(eyas_data: Path, tmp_path: Path) -> None:
    found = smoke("decoder", "--work", str(tmp_path))
    assert 0 < found["retention"] <= 1.5
    assert found["sd"] is None
    assert set(found["kinds"]) == {"sts", "classification"}
    assert found["parameters"]["student"] <= 19_000_000
    run = tmp_path / "decoder-smoke" / product() / "decoder-s0"
    trained = (run / "metrics.jsonl").stat().st_mtime_ns
    again = smoke("decoder", "--work", str(tmp_path))
    assert again["retention"] == found["retention"]
    assert again["runs"] == found["runs"]
    assert (run / "metrics.jsonl").stat().st_mtime_ns == trained


@pytest.mark.parametrize("name", ["retention", "versus", "decoder"])
def test_the_recipes_are_valid_and_read_only_what_may_be_trained_on(eyas_data: Path, name: str) -> None:
    recipe = load_config(Recipe, f"experiments/{name}", [f"suite.folder={eyas_data}"])
    assert len(recipe.stages) == 1
    for source in recipe.data.sources:
        (path,) = source.files()  # type: ignore[union-attr]
        assert path.is_file()
        assert path.parent.name in {"pairs", "sentences"}
    evaluated = {task.split("/")[0] for task in recipe.suite.tasks}
    assert evaluated == {"sts", "classification", "pair_classification", "clustering", "retrieval", "reranking"}


def test_the_steps_fill_the_seconds() -> None:
    pace = Pace(seconds_per_token=1e-3, tokens_per_step=100.0, overhead=10.0, vector_seconds=0.0, token_seconds=0.0)
    assert pace.steps(20.0) == 100
    with pytest.raises(ValueError, match="give more --minutes"):
        pace.steps(10.05)


def test_the_log_gives_back_the_seconds_of_training(tmp_path: Path) -> None:
    lines = [
        {"step": 0, "eval/mean": 0.5},
        {"step": 10, "steps_per_s": 5.0, "tokens_per_s": 100.0},
        {"step": 20, "steps_per_s": 2.0, "tokens_per_s": 50.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert steps_logged(tmp_path) == [{"seconds": 2.0, "tokens": 200.0}, {"seconds": 5.0, "tokens": 250.0}]
    pace = Pace(seconds_per_token=1e-3, tokens_per_step=100.0, overhead=10.0, vector_seconds=0.0, token_seconds=0.0)
    for train, overhead in ((27.0, 20.0), (9.0, 10.0)):  # one that took more, one that took less
        (tmp_path / "timings.json").write_text(json.dumps({"train": train}))
        assert pace.after(tmp_path).overhead == overhead


def run_of(seed: int, sts: float, retrieval: float, made_from: str = "this recipe") -> dict[str, Any]:
    of = {"teacher": 0.8, "untrained": 0.2, "student": 0.4}
    card = {
        "means": {"retention": (sts + retrieval) / 2, "recovered": 0.5, "task_type": of},
        "retention": {"sts": sts, "retrieval": retrieval},
        "kinds": {"sts": of, "retrieval": of},
        "facts": {"parameters": {"teacher": 2, "student": 1}},
    }
    return {**outcome(card), "seed": seed, "made_from": made_from}


def test_seeds_are_summed_up() -> None:
    found = together([run_of(1, 1.0, 0.8), run_of(0, 0.9, 0.7)])
    assert found["seeds"] == [0, 1]
    assert found["retention"] == pytest.approx(0.85)
    assert found["sd"] == pytest.approx(0.1 / 2**0.5)
    assert found["worst_kind"] == {"kind": "retrieval", "retention": pytest.approx(0.75)}
    assert found["untrained"] == pytest.approx(0.25)


def test_runs_of_a_saved_result_are_added_where_the_recipe_is_the_same(tmp_path: Path) -> None:
    path, runs = tmp_path / "any.json", [run_of(0, 0.9, 0.7), run_of(1, 1.0, 0.8), run_of(2, 1.0, 0.8, "another")]
    assert saved_runs(path, None, "this recipe", []) == []
    path.write_text(json.dumps({"runs": runs, "students": {"layers_3": {"runs": runs[:1]}}}))
    assert saved_runs(path, None, "this recipe", besides=[1]) == runs[:1]
    assert saved_runs(path, "layers_3", "this recipe", besides=[]) == runs[:1]
    assert saved_runs(path, "layers_2", "this recipe", besides=[]) == []
    path.write_text(json.dumps({"points": {}}))  # as versus_st saved it before
    assert saved_runs(path, None, "this recipe", besides=[]) == []


@pytest.mark.parametrize("name, minutes", [("decoder", 30.0), ("retention", 60.0)])
def test_saved_runs_are_of_the_recipe_as_it_is(name: str, minutes: float) -> None:
    """Whoever changes a recipe runs it again, or says that what is saved is of another."""
    saved = json.loads((RESULTS / f"{name}.json").read_text())
    students: dict[str | None, Any] = saved.get("students", {None: saved})
    for student, of in students.items():
        keep = () if student is None else (f"student.start.keep={student.removeprefix('layers_')}",)
        here = Experiment(f"experiments/{name}", Path("any"), keep).made_from(minutes)
        assert {run["made_from"] for run in of["runs"]} == {here}
        assert together(of["runs"])["retention"] == of["retention"]


def test_the_protocol_names_layers_of_the_teacher() -> None:
    fixed = protocol(full=True)
    assert fixed.retention.layers == [3, 2, 1]
    assert len(fixed.seeds) == 3
    assert {of.cut for of in (fixed.retention, fixed.decoder, fixed.versus_st)} == {None}
    quick = protocol(full=False)
    assert all(of.cut is not None for of in (quick.retention, quick.decoder, quick.versus_st))
    assert quick.retention.layers == fixed.retention.layers
    assert set(quick.versus_st.learning_rates) < set(fixed.versus_st.learning_rates)


@pytest.mark.timeout(900)
def test_the_retention_of_a_depth_is_measured(eyas_data: Path, tmp_path: Path) -> None:
    found = smoke("retention", "--work", str(tmp_path), "--layers", "1")
    assert 0 < found["layers_1"] <= 1.5
    assert found["sd"] == {"layers_1": None}
    assert set(found["worst_kind"]["layers_1"]) == {"kind", "retention"}
    assert 0 < found["untrained"]["layers_1"] <= 1.5
    (run,) = found["students"]["layers_1"]["runs"]
    assert run["steps"] == 3
    assert run["ran"].keys() >= {"processor", "commit", "day"}


@pytest.mark.timeout(900)
def test_both_sides_are_searched_trained_and_compared(eyas_data: Path, tmp_path: Path) -> None:
    found = smoke("versus_st", "--full", "--work", str(tmp_path))
    (run,) = found["runs"]
    for side in ("ours", "peer"):
        assert len(run["search"][side]) == 2
        assert all(-1 <= cosine <= 1 for cosine in run["search"][side].values())
    trained = {"0.25", "0.5", "1", "copied", "folded"}
    assert set(found["points"]) == {*trained, "untrained", "teacher"}
    assert set(found["seconds"]) == trained
    assert all(seconds > 0 for seconds in found["seconds"].values())
    assert set(found["kinds"]["1"]) == {"sts", "classification"}
    for key, start in (("points_ahead", "copied"), ("points_ahead_same_start", "folded")):
        assert found[key] == pytest.approx(found["points"]["1"] - found["points"][start])
        low, high = found[f"{key}_interval"]
        assert low < found[key] < high
        assert 0 < found["points"][start] < found["points"]["teacher"] + 5
        made = tmp_path / "versus-smoke" / product()
        assert list(made.glob(f"peer-*/{start}-s0/model/model.safetensors"))


@pytest.mark.timeout(900)
def test_a_decoder_is_compared_from_one_start_on_both_sides(eyas_data: Path, tmp_path: Path) -> None:
    found = smoke("versus_st", "--student", "decoder", "--work", str(tmp_path))
    assert set(found["points"]) == {"0.5", "1", "static", "untrained"}
    assert found["points_ahead_same_start"] == pytest.approx(found["points"]["1"] - found["points"]["static"])
    assert "points_ahead" not in found
    (run,) = found["runs"]
    assert [len(run["search"][side]) for side in ("ours", "peer")] == [2, 3]
    assert sum("None" not in setting for setting in run["search"]["peer"]) == 1, "with the product's rate too"
    assert list((tmp_path / "versus_decoder-smoke" / product()).glob("peer-*/static-s0/model/model.safetensors"))
    # The other side's three steps leave it where it began, which is what the product's closed form gives.
    assert found["points"]["static"] == pytest.approx(found["points"]["untrained"], abs=3)
