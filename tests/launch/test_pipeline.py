"""A whole run on real text with a real teacher: what it leaves, what a second one skips, what a change makes again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer

from benchmarks.eval_speed import share_of_training
from data_prep.reduce import FILE as AXES
from embedding.config import load_config
from embedding.embedder import Embedder
from embedding.files import read_json
from eval.evaluate import evaluate
from eval.suite import SuiteConfig, load_suite
from launch.engine import LAUNCH
from launch.workspace import Workspace
from tests.conftest import TEACHER
from tests.launch.conftest import INSTRUCTION, RUN, STEPS, contents, eyas, questions_and_answers, skipped, write_rows
from train.recipe import Recipe

# -------------------------------------------------------------------------------------------------- what a run leaves


def test_a_run_leaves_a_model_that_sentence_transformers_loads(finished: Path) -> None:
    texts = [row["answer"] for row in questions_and_answers()[:5]]
    ours = Embedder.from_pretrained(RUN / "model")
    theirs = SentenceTransformer(str(RUN / "model"), device="cpu")
    np.testing.assert_allclose(ours.encode(texts), theirs.encode(texts), atol=1e-5)
    assert theirs.prompts["query"] == theirs.prompts["faq"] == ours.template.prompt("query", INSTRUCTION)
    queries = ours.encode(texts, role="query", instruction=INSTRUCTION)
    np.testing.assert_allclose(queries, theirs.encode(texts, prompt_name="query"), atol=1e-5)


def test_a_run_leaves_its_scores_searches_and_report(finished: Path) -> None:
    card = read_json(RUN / "scorecard.json")
    task = card["tasks"]["retrieval/faq"]
    assert 0 < task["untrained"] <= 1
    assert task["retention"] == pytest.approx(task["student"] / task["teacher"])
    assert card["facts"]["parameters"]["student"] < card["facts"]["parameters"]["teacher"]
    assert len(read_json(RUN / "searches.json")["searches"]) == 3
    assert "retrieval" in (RUN / "report.html").read_text().lower()


def test_a_run_counts_its_rows_and_times_its_steps(finished: Path) -> None:
    summary, timings = read_json(RUN / "summary.json"), read_json(RUN / "timings.json")
    source = summary["sources"]["faq"]
    assert source["rows"] == len(questions_and_answers())
    assert source["rows"] == source["examples"] + source["held out"] + sum(source["dropped"].values())
    assert summary["vectors"]["computed"] > 0
    assert summary["tokens"]["all"] > 0
    assert list(timings) == [*STEPS, "total"]
    assert timings["total"] == pytest.approx(sum(timings[step] for step in STEPS), abs=0.01)


def test_the_resolved_recipe_can_be_run_again(finished: Path) -> None:
    result = eyas("run", str(RUN / "config.yaml"))
    assert skipped(result) == STEPS


def test_held_out_text_is_not_trained_on(finished: Path) -> None:
    result = read_json(RUN / "steps" / "prepare.json")["result"]
    heldout = Path(result["outputs"][0]) / "heldout" / "retrieval" / "faq"
    asked = set(pq.read_table(heldout / "queries.parquet")["text"].to_pylist())
    answers = set(pq.read_table(heldout / "corpus.parquet")["text"].to_pylist())
    from data_prep.tables import Texts

    trained = set(Texts.load(Path(result["outputs"][0]) / "texts").texts.to_pylist())
    assert asked
    assert not trained & (asked | answers)


# ----------------------------------------------------------------------------------------------- skipped and run again


def test_a_second_run_skips_everything(finished: Path) -> None:
    before = contents(finished)
    result = eyas("run", "mine.yaml")
    assert result.exit_code == 0
    assert skipped(result) == STEPS
    assert contents(finished) == before
    assert "Scorecard" in result.stdout


@pytest.mark.parametrize(
    "override, first, said",
    [
        ("data.sources.0.limit=60", "prepare", "config.sources"),
        ("teacher.max_tokens=16", "embed", "max_tokens: expected 16, found 32"),
        ("student.max_tokens=33", "tokenize", "max_tokens: expected 33, found 32"),
        ("student.template=null", "tokenize", "the instructions of the sources (1) are put before no text"),
        ("stages.0.learning_rate=0.002", "train", "learning_rate"),
        ("suite.max_rows=5", "evaluate", "max_rows: expected 5, found null"),
        ("tracking.log_every=1", None, ""),
        ("compute.token_budget=2048", None, ""),
    ],
)
def test_a_change_runs_what_depends_on_it(finished: Path, override: str, first: str | None, said: str) -> None:
    result = eyas("run", "mine.yaml", override)
    assert result.exit_code == 0, result.output
    assert skipped(result) == STEPS[: STEPS.index(first) if first else None]
    assert said in " ".join(result.stdout.split())


def test_changed_rows_of_the_same_file_are_noticed(finished: Path) -> None:
    write_rows(Path("faq.jsonl"), questions_and_answers()[:-1])
    result = eyas("run", "mine.yaml")
    assert skipped(result) == []
    again = read_json(RUN / "summary.json")["vectors"]
    assert again["computed"] == 0, "the vectors of the other rows are reused"
    assert again["reused"] > 0


def test_another_run_shares_data_vectors_and_tokens(finished: Path) -> None:
    result = eyas("train", "mine.yaml", "name=other", "seed=1")
    assert result.exit_code == 0, result.output
    assert skipped(result) == ["prepare", "embed"]
    assert Path("runs/other/model/model.safetensors").is_file()
    assert not Path("runs/other/scorecard.json").exists()


def test_a_lost_model_is_exported_from_the_checkpoint(finished: Path) -> None:
    before = contents(RUN / "model")
    shutil.rmtree(RUN / "model")
    result = eyas("run", "mine.yaml")
    assert skipped(result) == [step for step in STEPS if step not in ("export", "report")]  # the card lay in the model
    after = contents(RUN / "model")
    for model in (before, after):
        model.pop("README.md")  # it says how long each step took
    assert after == before


def test_a_lost_vector_store_is_made_again(finished: Path) -> None:
    shutil.rmtree("runs/cache/vectors")
    result = eyas("run", "mine.yaml", "seed=2")
    assert result.exit_code == 0, result.output
    assert skipped(result) == ["prepare"]


def test_restart_trains_from_the_beginning(finished: Path) -> None:
    before = contents(RUN / "model")
    before.pop("README.md")  # the card says how long it took
    result = eyas("run", "mine.yaml", "--restart")
    # The report shows the training log, whose times differ.
    assert skipped(result) == [step for step in STEPS if step not in ("train", "report")]
    assert "resumed" not in result.output
    assert {name: found for name, found in contents(RUN / "model").items() if name != "README.md"} == before


def test_a_restarted_training_that_its_launcher_starts_again_goes_on(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LAUNCH, "17")
    words = ("train", "mine.yaml", "stages.0.steps=3", "tracking.checkpoint_every=1", "--restart")
    assert "train" not in skipped(eyas(*words))
    (RUN / "steps" / "train.json").unlink()  # as if it had been killed after its last checkpoint
    assert "resumed from step 3" in eyas(*words).output
    monkeypatch.setenv(LAUNCH, "18")
    assert "train" not in skipped(again := eyas(*words))
    assert "resumed" not in again.output


def test_a_restart_that_is_killed_before_its_first_checkpoint_does_not_end_with_the_old_weights(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LAUNCH, "17")
    words = ("train", "mine.yaml", "--restart")
    monkeypatch.setattr("launch.pipeline.train", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    assert eyas(*words).exit_code != 0
    monkeypatch.undo()
    monkeypatch.setenv(LAUNCH, "17")
    monkeypatch.chdir(finished)
    assert not (RUN / "stages").exists()
    again = eyas(*words)
    assert again.exit_code == 0, again.output
    assert "stage match: skipped" not in again.output


@pytest.mark.parametrize("change", ["stages.0.batch_size=5000", "stages.0.losses=[{kind: match, widths: [9999]}]"])
def test_a_refused_restart_leaves_the_finished_run_as_it_was(finished: Path, change: str) -> None:
    before = contents(RUN / "checkpoints"), contents(RUN / "steps")
    result = eyas("train", "mine.yaml", "--restart", change)
    assert result.exit_code == 2, result.output
    assert (contents(RUN / "checkpoints"), contents(RUN / "steps")) == before
    assert not RUN.with_name("tiny.1").exists()


def test_times_of_a_finished_run_stay_until_it_is_trained_again(finished: Path) -> None:
    before = read_json(RUN / "timings.json")
    assert eyas("prepare", "mine.yaml").exit_code == 0
    assert read_json(RUN / "timings.json") == before


def test_a_finished_run_keeps_its_own_recipe_and_counts_until_it_is_trained_otherwise(finished: Path) -> None:
    before = {name: (RUN / name).read_bytes() for name in ("config.yaml", "summary.json")}
    result = eyas("prepare", "mine.yaml", "data.sources.0.limit=20")
    assert result.exit_code == 0, result.output
    assert "stay those of the finished training" in result.output
    assert {name: (RUN / name).read_bytes() for name in before} == before
    assert eyas("run", "mine.yaml", "suite.max_rows=9").exit_code == 0
    assert "max_rows: 9" in (RUN / "config.yaml").read_text(), "scorecard and report are of this suite now"


def test_a_task_of_an_array_runs_whole_and_only_embedding_is_shared(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TASK_ID": "1", "TASK_MIN": "0", "TASK_COUNT": "2"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_{name}", value)
    assert eyas("run", "mine.yaml", "name=task", "cache=runs/fresh").exit_code == 0
    assert read_json(Path("runs/task/run.json"))["state"] == "done"
    assert (Path("runs/task") / "report.html").is_file()
    assert not (Path("runs/task") / "share-1").exists()
    assert eyas("embed", "mine.yaml", "name=share", "cache=runs/shared").exit_code == 0
    assert (Path("runs/share") / "share-1" / "run.json").is_file()


def test_the_student_is_trained_again_when_what_it_starts_from_changed(finished: Path) -> None:
    shutil.copytree(RUN / "model", "before")
    words = ("run", "mine.yaml", "name=next", "student.start={kind: pretrained, model: ./before}")
    assert skipped(eyas(*words)) == ["prepare", "embed"]
    assert skipped(eyas(*words)) == STEPS
    Path("before/README.md").write_text("another card")
    assert skipped(eyas(*words)) == STEPS
    model = Embedder.from_pretrained("before")
    with torch.no_grad():
        model.backbone.get_input_embeddings().weight.mul_(1.01)
    shutil.rmtree("before")
    model.save_pretrained(Path("before"))
    assert skipped(eyas(*words)) == ["prepare", "embed"]


def test_the_query_prompt_is_that_of_queries_where_single_texts_are_more(finished: Path) -> None:
    write_rows(Path("texts.jsonl"), [{"text": f"A single text about number {n}."} for n in range(300)])
    recipe = yaml.safe_load(Path("mine.yaml").read_text())
    recipe["data"]["sources"].append({"kind": "jsonl", "path": "texts.jsonl", "text": "text"})
    recipe["student"]["template"]["document"] = "passage: "
    Path("mixed.yaml").write_text(yaml.safe_dump(recipe))
    assert eyas("train", "mixed.yaml", "name=mixed").exit_code == 0
    prompts = Embedder.from_pretrained("runs/mixed/model").prompts
    assert prompts["query"] == prompts["faq"] == f"Instruct: {INSTRUCTION}\nQuery: "
    assert prompts["texts"] == "passage: "


def test_what_goes_by_scores_is_refused_where_there_are_none(finished: Path) -> None:
    bare = ("mine.yaml", "name=bare", "data.heldout.share=0")
    result = eyas("train", *bare, "tracking.evaluate_every=0.5", "tracking.floor=0.9")
    assert result.exit_code == 2, result.output
    assert "export best, floor or patience goes by scores, and no pairs are held out" in result.stderr.splitlines()[-1]
    result = eyas("train", "mine.yaml", "tracking.evaluate_every=0.5", "tracking.patience=2", "stages.0.ema=0.9")
    assert result.exit_code == 2
    assert "has ema, and tracking.export best, floor and patience go by" in result.stderr


def test_a_greedy_soup_is_made_without_evaluations_on_the_way(finished: Path) -> None:
    recipe = yaml.safe_load(Path("mine.yaml").read_text())
    match = recipe["stages"][0]
    recipe["stages"] = [match, {**match, "name": "a", "begin": "match"}, {**match, "name": "b", "begin": "match"}]
    recipe |= {"name": "soup", "merge": {"of": ["a", "b"], "method": "greedy"}}
    Path("soup.yaml").write_text(yaml.safe_dump(recipe))
    result = eyas("train", "soup.yaml", "name=bare", "data.heldout.share=0")
    assert result.exit_code == 2, result.output
    assert "merge.method greedy goes by scores" in result.stderr.splitlines()[-1]
    result = eyas("train", "soup.yaml")
    assert result.exit_code == 0, result.output
    assert "greedy soup of" in result.output


@pytest.mark.parametrize("command, last", [("prepare", "prepare"), ("embed", "embed"), ("train", "export")])
def test_a_command_for_one_step_stops_after_it(finished: Path, command: str, last: str) -> None:
    result = eyas(command, "mine.yaml")
    assert result.exit_code == 0, result.output
    assert skipped(result) == STEPS[: STEPS.index(last) + 1]


def test_single_texts_give_a_model_without_a_scorecard(finished: Path) -> None:
    recipe = yaml.safe_load(Path("mine.yaml").read_text())
    recipe["data"]["sources"] = [{"kind": "jsonl", "path": "faq.jsonl", "text": "answer"}]
    Path("texts.yaml").write_text(yaml.safe_dump({**recipe, "name": "texts"}))
    result = eyas("run", "texts.yaml")
    assert result.exit_code == 0, result.output
    assert "no scorecard" in result.stdout
    assert Path("runs/texts/model/model.safetensors").is_file()


# ----------------------------------------------------------------------------------------------------------- interrupts


def test_a_terminated_training_goes_on_where_it_was(finished: Path) -> None:
    command = [sys.executable, "-m", "launch", "train", "mine.yaml", "name=long", "stages.0.steps=30"]
    root = str(Path(__file__).parents[2])
    command += ["tracking.log_every=1", "tracking.checkpoint_every=1000"]
    metrics = Path("runs/long/metrics.jsonl")
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": root}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    _wait(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 2, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == os.EX_TEMPFAIL, output
    assert "run it again to go on" in output
    done = len(metrics.read_text().splitlines())

    result = eyas("train", "mine.yaml", "name=long", "stages.0.steps=30", "tracking.log_every=1")
    assert result.exit_code == 0, result.output
    assert f"resumed from step {done} of 30" in result.stderr
    steps = [yaml.safe_load(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 31))


def _wait(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "nothing happened for two minutes"
        time.sleep(0.05)


# ------------------------------------------------------------------------------------------------------ shipped recipes


def test_the_shipped_recipes_are_valid(tmp_path: Path) -> None:
    assert load_config(Recipe, "demo").name == "demo"
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: base\nname: mine\ndata: {sources: [{kind: docstrings}]}\n")
    assert load_config(Recipe, mine).stages


def test_the_best_checkpoint_is_exported_where_the_recipe_asks(finished: Path) -> None:
    changes = ["name=best", "stages.0.steps=4", "tracking.evaluate_every=1"]
    result = eyas("train", "mine.yaml", *changes, "tracking.export=best")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in Path("runs/best/metrics.jsonl").read_text().splitlines()]
    means = {line["step"]: line["eval/mean"] for line in lines if "eval/mean" in line and line["step"]}
    best = max(means, key=lambda step: (means[step], -step))
    assert read_json(Path("runs/best/steps/export.json"))["result"]["step"] == best
    last = eyas("train", "mine.yaml", *changes)
    assert last.exit_code == 0, last.output
    assert read_json(Path("runs/best/steps/export.json"))["result"]["step"] == 4


def test_what_was_chosen_by_one_rule_is_not_taken_for_another_s(finished: Path) -> None:
    words = ["mine.yaml", "name=chosen", "stages.0.steps=4", "tracking.evaluate_every=1"]
    assert eyas("train", *words, "tracking.export=best").exit_code == 0
    for other in (["tracking.floor=0.1"], ["tracking.export=best", "suite.max_rows=9"]):
        result = eyas("train", *words, *other)
        assert result.exit_code == 2, result.output
        assert "was kept by another rule than there is now" in " ".join(result.stderr.split())
    again = eyas("train", *words, "tracking.export=best", "suite.max_rows=9", "--restart")
    assert again.exit_code == 0, again.output


def test_a_suite_that_cannot_be_scored_is_found_before_a_training_that_goes_by_it(finished: Path) -> None:
    words = ["mine.yaml", "name=typo", "tracking.evaluate_every=1", "tracking.floor=0.9", "suite.tasks=[retreival/*]"]
    result = eyas("train", *words)
    assert result.exit_code == 2, result.output
    assert "retreival" in result.stderr
    assert not Path("runs/typo/checkpoints").exists()


def test_what_only_the_export_asks_for_trains_nothing_again(finished: Path) -> None:
    words = ["mine.yaml", "name=kept", "student.projection=learned"]
    assert eyas("train", *words).exit_code == 0
    result = eyas("train", *words, "student.keep_projection=true")
    assert result.exit_code == 0, result.output
    assert skipped(result) == ["prepare", "embed", "tokenize", "train"]


def test_a_part_of_each_task_is_evaluated_while_training(finished: Path) -> None:
    rows = ["tracking.evaluate_rows=8", "tracking.evaluate_every=2", "tracking.export=best"]
    rows.append("student.start.fold=false")  # what is evaluated before the first step is then the untrained student
    result = eyas("run", "mine.yaml", "name=part", "stages.0.steps=4", *rows)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in Path("runs/part/metrics.jsonl").read_text().splitlines()]
    means = {line["step"]: line["eval/mean"] for line in lines if "eval/mean" in line}
    share = share_of_training(Path("runs/part"))
    assert share["evaluations"] == len(means) == 3
    assert 0 < share["share"] < 1
    card = read_json(Path("runs/part/scorecard.json"))
    exported = read_json(Path("runs/part/steps/export.json"))["result"]["step"]
    ends = card["curve"]["means"]["task_type"]
    assert ends["untrained"] == pytest.approx(means[0], abs=1e-6)
    assert ends["student"] == pytest.approx(means[exported], abs=1e-6)
    assert ends != card["means"]["task_type"]
    assert "on a part of each task" in Path("runs/part/report.html").read_text()
    assert "on a part of each task" not in Path("runs/tiny/report.html").read_text()


def test_a_source_may_be_called_like_a_side(finished: Path) -> None:
    result = eyas("run", "mine.yaml", "name=named", "data.sources.0.name=document")
    assert result.exit_code == 0, result.output
    prompts = read_json(Path("runs/named/model/config_sentence_transformers.json"))["prompts"]
    assert prompts["document"] == ""
    assert prompts["query"] == read_json(RUN / "model/config_sentence_transformers.json")["prompts"]["query"]


def test_a_licence_that_comes_later_trains_nothing_again(finished: Path) -> None:
    result = eyas("run", "mine.yaml", "data.sources.0.licence=CC-BY-4.0")
    assert result.exit_code == 0, result.output
    assert skipped(result) == STEPS[:-1], "all but the report"
    assert "CC-BY-4.0" in (RUN / "model" / "README.md").read_text()
    assert "CC-BY-4.0" in (RUN / "data_card.md").read_text()


def test_a_suite_folder_that_is_not_there_is_refused_before_anything_is_done(finished: Path) -> None:
    for command in ("prepare", "plan"):
        result = eyas(command, "mine.yaml", "name=new", "suite.folder=evaluatoin")
        assert result.exit_code == 2
        assert "suite.folder evaluatoin: no such folder" in " ".join(result.stderr.split())


def test_vectors_along_other_axes_are_others(finished: Path) -> None:
    at = Workspace(load_config(Recipe, "mine.yaml"))
    at.results["embed"] = {"outputs": [str(finished)], "identity": {"model": "m"}}
    found = [at.vector_facts]
    for content in (b"one", b"two"):
        (finished / AXES).write_bytes(content)
        found.append(at.vector_facts)
    assert found[0] == {"model": "m"}
    assert len({json.dumps(facts) for facts in found}) == 3


def test_the_teacher_is_judged_on_all_that_it_can_read_however_short_its_lessons(finished: Path) -> None:
    before = read_json(RUN / "scorecard.json")["tasks"]["retrieval/faq"]["teacher"]
    suite = load_suite(SuiteConfig(folder=next(Path("runs/cache/data").glob("*/heldout"))))
    cut = evaluate(Embedder.from_pretrained(TEACHER, max_tokens=8), suite)["tasks"]["retrieval/faq"]["score"]
    assert abs(cut - before) > 1e-3, "else this shows nothing"
    assert eyas("run", "mine.yaml", "name=short", "cache=runs/fresh", "teacher.max_tokens=8").exit_code == 0
    after = read_json(Path("runs/short/scorecard.json"))["tasks"]["retrieval/faq"]["teacher"]
    assert after == pytest.approx(before, abs=1e-6)


def test_the_searches_of_a_run_are_those_of_its_model(finished: Path) -> None:
    found = read_json(RUN / "searches.json")
    folder = next(Path("runs/cache/data").glob("*/heldout/retrieval/faq"))
    names = ("corpus", "queries", "qrels")
    corpus, queries, qrels = (pq.read_table(folder / f"{name}.parquet").to_pydict() for name in names)
    asked = dict(zip(queries["text"], queries["id"], strict=True))
    right = set(zip(qrels["query_id"], qrels["doc_id"], strict=True))
    model = Embedder.from_pretrained(RUN / "model")
    documents = model.encode(corpus["text"], role="document")
    assert found["instruction"] == INSTRUCTION
    for search in found["searches"]:
        query = model.encode([search["query"]], role="query", instruction=INSTRUCTION)[0]
        best = [corpus["id"][at] for at in np.argsort(-(documents @ query), kind="stable")[:3]]
        assert [hit["id"] for hit in search["hits"]] == best
        assert [hit["relevant"] for hit in search["hits"]] == [(asked[search["query"]], doc) in right for doc in best]
