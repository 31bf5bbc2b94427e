"""What the steps of a run share: where things lie, and what is loaded once and only when a step needs it."""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.reduce import FILE as AXES
from data_prep.tables import Examples, Texts, Tokens
from data_prep.teacher import NoTeacherConfig, Teacher, load_teacher, vector_keys
from data_prep.vectors import VectorStore
from embedding.attention import measured_in
from embedding.config import dump_config
from embedding.embedder import Embedder
from embedding.files import fingerprint, sha256_file, write_json, write_text
from embedding.instruction import Template
from embedding.layout import resolve_model
from embedding.memory import drop_garbage
from eval.suite import Suite, entries, load_suite
from launch.prepared import card
from launch.steps import Result
from train.plan import Inputs, check_student, checkpoint_identity, foreseen, plan_stages
from train.pruning import IMPORTANCE_TEXTS
from train.recipe import BuiltStudent, PrunedStudent, Recipe
from train.student import Student, build_student

START_FILES = {".safetensors", ".bin", ".json", ".txt", ".model"}
"""Weights, configuration and tokenizer of a model, and not what is written about it."""


class Workspace:
    """One recipe, the results of its finished steps, and what follows from them.

    A property may be asked for as soon as the steps it reads from are in `results`.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.results: dict[str, Result] = {}
        self.folder = recipe.output / recipe.name
        """The run's own folder."""
        self.cache = recipe.cache
        self.model = self.folder / "model"
        self.checkpoints = self.folder / "checkpoints"

    # ------------------------------------------------------------------------------------------------------ training

    @property
    def data(self) -> Path:
        """The folder of the prepared tables; its name is their fingerprint."""
        return Path(self.results["prepare"]["outputs"][0])

    @cached_property
    def texts(self) -> Texts:
        """The distinct texts."""
        return Texts.load(self.data / "texts")

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher."""
        return load_teacher(self.recipe.teacher)

    def free_teacher(self) -> None:
        """Let go of the teacher's memory; it is loaded again when it is asked for."""
        self.__dict__.pop("teacher", None)
        drop_garbage()  # Accelerate's hooks on a spread teacher are circles of references

    @cached_property
    def inputs(self) -> Inputs:
        """What the student is trained on."""
        tokens = Path(self.results["tokenize"]["outputs"][0])
        made_from = {"data": self.data.name, "tokens": tokens.name, "teacher": self.vector_facts}
        made_from |= self.start
        rows = self.data
        if "mine" in self.results:
            rows = Path(self.results["mine"]["outputs"][0])
            made_from["mined"] = rows.name
        if self._greedy:
            made_from["suite"] = self.judge
        return Inputs(
            texts=self.texts,
            examples=Examples.load(rows / "examples"),
            tokens=Tokens.load(tokens),
            vectors=None if self.teacherless else self._teacher_vectors,
            made_from=made_from,
        )

    @property
    def vector_facts(self) -> Any:
        """What decides the teacher's vectors: its identity, and the axes of a store that keeps fewer numbers of each,
        since another store of the same teacher was fitted to other texts. None without a teacher."""
        facts = self.results["embed"]
        axes = [Path(name) / AXES for name in facts["outputs"] if (Path(name) / AXES).is_file()]
        return facts["identity"] | {"axes": sha256_file(axes[0])} if axes else facts["identity"]

    @cached_property
    def store(self) -> VectorStore:
        """The teacher's vectors, opened and verified."""
        facts = self.results["embed"]
        return VectorStore.open(Path(facts["outputs"][0]), facts["identity"], facts["width"])

    @cached_property
    def positions_N(self) -> np.ndarray:
        """Where in the store each text's vector is: int64 [N]; -1 where it is lost."""
        if self.teacherless:
            return np.zeros(0, dtype=np.int64)
        return self.store.locate(vector_keys(self.texts, self.recipe.teacher.template))

    def _teacher_vectors(self, rows: np.ndarray) -> np.ndarray:
        return self.store.read(self.positions_N[rows])

    def training_facts(self) -> dict[str, Any]:
        """What determines the trained weights."""
        return checkpoint_identity(self.recipe, self.inputs)

    def trained_from(self) -> dict[str, Any]:
        """`training_facts`, and what decides which of the trained weights there are, where scores do."""
        tracking = self.recipe.tracking
        decides = {"patience": tracking.patience, "evaluate_every": tracking.evaluate_every} if tracking.decides else {}
        return self.training_facts() | decides

    def untrained_facts(self) -> dict[str, Any]:
        """What determines the student before training, its tokenizer and template included."""
        student = self.recipe.student.model_dump(mode="json", exclude={"keep_projection"})
        facts = {"student": student, "seed": self.recipe.seed, "teacher": self.results["embed"]["identity"]}
        return facts | self.start | ({"texts": self.data.name} if self._measured else {})

    @cached_property
    def start(self) -> dict[str, str]:
        """{"start": a digest of the files of the model that the student begins with}; {} where that is the teacher."""
        start = self.recipe.student.start
        name = start.tokenizer if isinstance(start, BuiltStudent) else start.model
        if name == "teacher":
            return {}
        folder = resolve_model(name, getattr(start, "revision", None))
        files = sorted(path for path in folder.rglob("*") if path.suffix in START_FILES)
        return {"start": fingerprint({str(path.relative_to(folder)): sha256_file(path) for path in files})}

    @property
    def teacherless(self) -> bool:
        """Whether the student learns from labels alone."""
        return isinstance(self.recipe.teacher, NoTeacherConfig)

    @property
    def _begins_with_teacher(self) -> bool:
        """Whether the student cannot be built without the teacher: its layers, its embeddings or its tokenizer."""
        start = self.recipe.student.start
        names = (start.tokenizer, start.embeddings) if isinstance(start, BuiltStudent) else (start.model,)
        return "teacher" in names and not self.teacherless

    @property
    def _measured(self) -> bool:
        start = self.recipe.student.start
        return isinstance(start, PrunedStudent) and start.by == "importance"

    @property
    def teacher_width(self) -> int | None:
        """Of the teacher's vectors as they are stored; None: there is no teacher, or nobody knows yet."""
        if "embed" not in self.results:  # it is not known from a vector yet
            return self.recipe.teacher.store.pca or self.teacher.width or None  # an imported teacher does not say
        width: int | None = self.results["embed"]["width"]
        return width

    def foresee(self) -> None:
        """Refuse before the teacher's pass, which may take days, what training would refuse after it.

        Raises:
            ValueError: a stage does not fit the rows, or the student cannot be built or does not fit the stages.
        """
        inputs = foreseen(self.recipe, self.texts, Examples.load(self.data / "examples"), self.teacher_width or 0)
        plan_stages(self.recipe, inputs)
        _ = self.evaluates_in_training
        check_student(self.recipe, self.new_student(), inputs)

    def new_student(self) -> Student:
        """The student before training."""
        teacher = self.teacher if self._begins_with_teacher else None
        measured = min(len(self.texts), IMPORTANCE_TEXTS) if self._measured else 0
        return build_student(
            self.recipe.student,
            teacher if isinstance(teacher, Embedder) else None,
            self.recipe.seed,
            width=self.teacher_width,
            texts=[self.texts.text(row) for row in range(measured)],
        )

    # ---------------------------------------------------------------------------------------------------- evaluation

    @property
    def evaluation_data(self) -> Path:
        """The folder of evaluation data: the suite's own, else what was held out."""
        return self.recipe.suite.folder or self.data / "heldout"

    @property
    def evaluable(self) -> bool:
        """Whether there is anything to evaluate on: single texts alone hold nothing out."""
        suite = self.recipe.suite
        return bool(suite.folder or suite.official or entries(self.evaluation_data))

    @property
    def evaluates_in_training(self) -> bool:
        """Whether the training needs scores: on its way, or for a greedy soup at its end.

        Raises:
            ValueError: something is decided by scores, and there is nothing to evaluate on.
        """
        if self.decided_by_scores and not self.evaluable:
            what = "merge.method greedy" if self._greedy else "tracking.export best, floor or patience"
            raise ValueError(f"{what} goes by scores, and no pairs are held out to evaluate on: set suite.folder")
        return self.evaluable and (self.recipe.tracking.evaluate_every > 0 or self._greedy)

    @property
    def decided_by_scores(self) -> bool:
        """Whether scores decide which weights become the model."""
        return self.recipe.tracking.decides or self._greedy

    @cached_property
    def judge(self) -> str:
        """A digest of what is evaluated while training; "" where nothing is."""
        if not self.evaluates_in_training:
            return ""
        return fingerprint(self.suite_facts | {"rows": self.recipe.tracking.watched_rows})

    @cached_property
    def suite_facts(self) -> dict[str, Any]:
        """What scores on the suite are made from; its files are read for that, once."""
        from launch.scoring import suite_facts

        return suite_facts(self.recipe.suite, self.evaluation_data)

    @property
    def _greedy(self) -> bool:
        merge = self.recipe.merge
        return merge is not None and merge.method == "greedy"

    @cached_property
    def suite(self) -> Suite:
        """The evaluation suite, loaded."""
        return load_suite(self.recipe.suite, self.evaluation_data)

    @cached_property
    def watched(self) -> Suite:
        """What is evaluated while training: the suite, or `tracking.evaluate_rows` of each of its tasks."""
        suite = self.recipe.suite
        if (rows := self.recipe.tracking.watched_rows) is None:
            return self.suite
        limits = {
            "max_rows": min(rows, suite.max_rows or rows),
            "max_documents": min(rows, suite.max_documents or rows),
        }
        return load_suite(suite.model_copy(update=limits), self.evaluation_data)

    @property
    def searched(self) -> tuple[Path, str] | None:
        """The first retrieval task of the suite that lies in a folder, and its instruction."""
        for task in self.suite.tasks:
            if task.kind == "retrieval" and (self.evaluation_data / task.name).is_dir():
                return self.evaluation_data / task.name, task.instruction
        return None


def write_facts(at: Workspace) -> None:
    """config.yaml, summary.json and the data card of a run whose steps before the training are done."""
    embed, tokens = at.results.get("embed"), at.results.get("tokenize")
    summary = dict(at.results["prepare"]["summary"])
    if embed is not None:
        summary["vectors"] = embed["vectors"] | {"longer than the teacher's max tokens": embed["cut"]}
    if mined := at.results.get("mine"):
        summary["mined"] = mined["mined"]
    if tokens is not None:
        summary["tokens"] = {"all": tokens["tokens"], "texts longer than the student's max tokens": tokens["cut"]}
    write_json(at.folder / "summary.json", summary)
    card(at.recipe, at.folder, at.data, Path(tokens["outputs"][0]) if tokens is not None else None)
    write_text(at.folder / "config.yaml", dump_config(at.recipe))


def on_device(model: Embedder) -> Embedder:
    """The model on the GPU, where there is one, computing as models are measured there."""
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    model.computes_in = measured_in(model.device)
    return model


def placed() -> str:
    """Where this machine's part of a training runs, and what of the machine it leaves idle."""
    gpus, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not gpus:
        return f"on the CPU, {here} × {torch.get_num_threads()} threads"
    idle = f"; {gpus - here} more are idle: --on local --gpus {gpus} uses all" if gpus > here else ""
    return f"on {here} × {torch.cuda.get_device_name()}{idle}"


def parameters(model: torch.nn.Module) -> int:
    """How many numbers a model is made of."""
    return sum(parameter.numel() for parameter in model.parameters())


def query_prompts(inputs: Inputs, template: Template) -> dict[str, str]:
    """The prompts that a saved model names: each source's, as its first row has it, and `query`, that of the largest
    source with queries; single texts stand on the side of documents."""
    examples, texts = inputs.examples, inputs.texts
    prompts: dict[str, str] = {}
    query: dict[str, str] = {}
    for source in np.argsort(-np.bincount(examples.sources), kind="stable"):
        row = int(examples.queries[np.argmax(examples.sources == source)])
        prompt = prompts[examples.source_names[source]] = template.prompt(texts.role(row), texts.task(row))
        if texts.role(row) == "query":
            query.setdefault("query", prompt)
    own = {name: prompt for name, prompt in prompts.items() if name not in ("query", "document")}
    return query | own  # those two names are the template's, whatever a source is called
