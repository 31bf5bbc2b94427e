"""Mining as a step of a run: off unless asked for, done once, trained on, and again with the student's own vectors."""

import shutil
from pathlib import Path

import numpy as np

from data_prep.mine import MineConfig, mine
from data_prep.tables import Examples, Texts
from embedding.embedder import Embedder
from embedding.files import read_json, write_json
from tests.conftest import TEACHER
from tests.launch.conftest import RUN, STEPS, eyas, skipped

MINING = ["mine.negatives=3", "mine.ranks=[1, 20]"]
WITH_MINE = [*STEPS[:2], "mine", *STEPS[2:]]


def mined_examples(run: Path = RUN) -> Examples:
    return Examples.load(Path(read_json(run / "steps" / "mine.json")["result"]["outputs"][0]) / "examples")


def test_a_run_without_the_section_mines_nothing(finished: Path) -> None:
    assert not (RUN / "steps" / "mine.json").exists()
    result = eyas("mine", "mine.yaml")
    assert result.exit_code == 2
    assert "add a section `mine: {}`" in result.stderr


def test_mined_negatives_are_trained_on_and_mined_once(finished: Path) -> None:
    result = eyas("run", "mine.yaml", *MINING)
    assert result.exit_code == 0, result.output
    assert skipped(result) == ["prepare", "embed", "tokenize"]
    mined = mined_examples()
    assert (mined.negatives.counts > 0).any()
    assert not np.isin(mined.negatives.values, -1).any()
    found = read_json(RUN / "summary.json")["mined"]
    assert found["negatives"] == len(mined.negatives.values)
    page = (RUN / "report.html").read_text()
    assert "Hard negatives" in page
    assert f"{found['negatives']:,}" in page
    assert skipped(eyas("run", "mine.yaml", *MINING)) == WITH_MINE
    again = eyas("run", "mine.yaml", *MINING, "mine.relative=0.8")
    assert skipped(again) == ["prepare", "embed", "tokenize"]


def test_vectors_that_are_gone_are_computed_again_by_the_same_command(finished: Path) -> None:
    record = read_json(RUN / "steps" / "embed.json")
    (shard, *_) = sorted(Path(record["result"]["outputs"][0]).glob("shards/*"))
    shard.unlink()
    record["result"]["rows"] = 0  # as where another recipe has put its own vectors there meanwhile
    write_json(RUN / "steps" / "embed.json", record)
    result = eyas("mine", "mine.yaml", *MINING)
    assert result.exit_code == 2
    assert "vectors are gone; the same command computes them again" in " ".join(result.stderr.split())
    again = eyas("mine", "mine.yaml", *MINING)
    assert again.exit_code == 0, again.output


def test_negatives_that_a_step_takes_change_the_model(finished: Path) -> None:
    loss = ["stages.0.losses=[{kind: info_nce}]", "stages.0.steps=1", "tracking.log_every=1"]
    eyas("train", "mine.yaml", "name=plain", *loss)
    eyas("train", "mine.yaml", "name=mined", *loss, *MINING)
    plain, mined = (read_json(Path("runs") / name / "metrics.jsonl")["loss"] for name in ("plain", "mined"))
    assert mined > plain, "more documents to tell the positive from"


def test_a_second_round_uses_the_vectors_of_the_student(finished: Path) -> None:
    first = eyas("mine", "mine.yaml", *MINING)
    assert first.exit_code == 0, first.output
    by_teacher = mined_examples()
    again = (*MINING, f"mine.model={RUN / 'model'}")
    itself = eyas("mine", "mine.yaml", *again)
    assert itself.exit_code == 2, itself.output
    assert "which this run writes to; give this round another name" in " ".join(itself.stderr.split())
    assert eyas("mine", "mine.yaml", "name=second", *MINING).exit_code == 0
    second = eyas("mine", "mine.yaml", "name=second", *again)
    assert second.exit_code == 0, second.output
    assert "model: expected" in " ".join(second.stdout.split())
    by_student = mined_examples(Path("runs/second"))
    assert len(by_student) == len(by_teacher)
    assert not np.array_equal(by_student.negatives.values, by_teacher.negatives.values)
    assert len(list(Path("runs/cache/vectors").iterdir())) == 2
    assert skipped(eyas("mine", "mine.yaml", "name=second", *again)) == WITH_MINE[:3]


def test_mining_with_a_model_that_is_not_there_says_so(finished: Path) -> None:
    result = eyas("mine", "mine.yaml", "mine.model=runs/nowhere/model")
    assert result.exit_code == 2
    assert "runs/nowhere/model" in result.stderr


def test_a_lost_result_is_mined_again(finished: Path) -> None:
    eyas("mine", "mine.yaml", *MINING)
    before = mined_examples().negatives.values.copy()
    shutil.rmtree("runs/cache/mined")
    result = eyas("mine", "mine.yaml", *MINING)
    assert skipped(result) == ["prepare", "embed"]
    np.testing.assert_array_equal(mined_examples().negatives.values, before)


def test_wrong_settings_are_refused_before_anything_runs(finished: Path) -> None:
    result = eyas("mine", "mine.yaml", "mine.rank=[1, 20]")
    assert result.exit_code == 2
    assert "did you mean 'ranks'" in result.stderr


def test_the_vectors_that_are_mined_with_are_the_texts_own(finished: Path) -> None:
    assert eyas("mine", "mine.yaml", *MINING, "mine.pick=nearest").exit_code == 0
    data = Path(read_json(RUN / "steps" / "prepare.json")["result"]["outputs"][0])
    words = Texts.load(data / "texts").texts.to_pylist()
    vectors = Embedder.from_pretrained(TEACHER, max_tokens=32).encode(words).astype(np.float16).astype(np.float32)
    config = MineConfig(negatives=3, ranks=(1, 20), pick="nearest")
    mine(config, data, lambda rows: vectors[rows], {"by": "hand"}, Path("by-hand"), progress=False)
    ours, hand = mined_examples().negatives, Examples.load(Path("by-hand/examples")).negatives
    same = [set(ours.row(i).tolist()) == set(hand.row(i).tolist()) for i in range(len(ours.counts))]
    assert np.mean(same) > 0.95, "but for ties in half precision"
