"""The steps of a run, from text to report: what each is made from, what it does, where its result lies."""

import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from rich.console import Console

from data_prep.build import data_fingerprint, prepare
from data_prep.tables import Examples, Texts, Tokens
from data_prep.teacher import embed_texts, load_teacher, teacher_identity, vector_keys
from data_prep.tokenized import tokenize_texts, tokens_fingerprint
from data_prep.vectors import VectorStore
from embedding.config import dump_config
from embedding.embedder import Embedder
from embedding.files import fingerprint, new_folder, read_json, sha256_file, write_json, write_text
from embedding.layout import resolve_model
from eval.evaluate import Scores, evaluate
from eval.report import write_report
from eval.scorecard import scorecard, terminal_table
from eval.suite import Suite, entries, load_suite
from launch.scoring import curve_values, kept_scores, suite_facts
from launch.searches import example_searches, print_searches
from launch.steps import Ledger, Result
from train.checkpoint import newest_checkpoint
from train.loop import train
from train.plan import Inputs, checkpoint_identity, plan_stages
from train.recipe import Recipe
from train.student import Student, build_student

Step = Literal["prepare", "embed", "tokenize", "train", "export", "evaluate", "report"]


class Pipeline:
    """One recipe on its way to a model. `results` holds what each finished step says of itself."""

    def __init__(self, recipe: Recipe, console: Console, *, resume: bool = True, queries: Sequence[str] = ()) -> None:
        """`resume`: go on from the newest checkpoint; `queries`: the example searches, else some held-out queries."""
        self.recipe = recipe
        self.console = console
        self.resume = resume
        self.queries = queries
        self.folder = recipe.output / recipe.name
        self.model = self.folder / "model"
        self.checkpoints = self.folder / "checkpoints"
        self.ledger = Ledger(self.folder, recipe.cache / "steps", console)
        self.results: dict[Step, Result] = {}

    def run(self, until: Step = "report") -> None:
        """Do every step up to `until` that is not finished.

        Raises:
            ValueError: something the user can mend; what is finished stays.
        """
        steps: dict[Step, Callable[[], Result]] = {
            "prepare": self.prepare,
            "embed": self.embed,
            "tokenize": self.tokenize,
            "train": self.train,
            "export": self.export,
            "evaluate": self.evaluate,
            "report": self.report,
        }
        for step in get_args(Step):
            self.results[step] = steps[step]()
            if step == until:
                break
        if get_args(Step).index(until) < get_args(Step).index("train"):
            self._write_facts()
        else:
            self._show()

    # ---------------------------------------------------------------------------------------- text, vectors and tokens

    def prepare(self) -> Result:
        """Sources to texts, examples and held-out tasks."""
        made_from = data_fingerprint(self.recipe.data)
        folder = self.recipe.cache / "data" / fingerprint(made_from)

        def work() -> Result:
            return {"outputs": [str(folder)], "summary": prepare(self.recipe.data, folder)}

        result = self.ledger.step("prepare", made_from, work, share=True)
        summary = result["summary"]
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in summary["dropped"].items())
        self.ledger.say(
            "", f"{summary['texts']:,} texts, {summary['examples']:,} examples; dropped: {dropped or 'none'}"
        )
        return result

    def embed(self) -> Result:
        """The teacher's vector of every text that its store lacks."""
        config = self.recipe.teacher
        weights = resolve_model(config.model, config.revision)
        # Size and time, not contents: hashing a large teacher takes longer than finding that nothing is to be done.
        files = {str(path.relative_to(weights)): _stamp(path) for path in weights.rglob("*") if path.is_file()}

        def work() -> Result:
            report = embed_texts(config, self.texts, self.recipe.cache / "vectors", embedder=self.teacher)
            for line in (report.note, *(f"damaged, computed again: {name}" for name in report.set_aside)):
                if line:
                    self.ledger.say("", line)
            return {
                "outputs": [str(report.store)],
                "identity": teacher_identity(config, self.teacher),
                "width": self.teacher.width,
                "parameters": _parameters(self.teacher),
                "vectors": {"computed": report.computed, "reused": report.reused},
                "tokens": report.tokens,
                "cut": report.cut,
            }

        made_from = {"data": self.data.name, "teacher": config.model_dump(mode="json"), "files": files}
        return self.ledger.step("embed", made_from, work, share=True)

    def tokenize(self) -> Result:
        """The student's token ids of every text."""

        def work() -> Result:
            embedder = self._new_student().embedder
            made_from = tokens_fingerprint(self.data, embedder.tokenizer, embedder.template)
            folder = self.recipe.cache / "tokens" / fingerprint(made_from)
            lengths = tokenize_texts(self.data, embedder.tokenizer, embedder.template, folder).lengths
            cut = int((lengths > embedder.max_tokens).sum())
            return {"outputs": [str(folder)], "tokens": int(lengths.sum()), "cut": cut}

        made_from = {"data": self.data.name, **self._untrained_facts()}
        return self.ledger.step("tokenize", made_from, work, share=True)

    # -------------------------------------------------------------------------------------------- training and export

    def train(self) -> Result:
        """The student through all stages of the recipe; its weights are in the last checkpoint."""
        watch = self.recipe.tracking.evaluate_every > 0

        def work() -> Result:
            # What does not fit is found now, before anything of an earlier training is touched.
            plan_stages(self.recipe, self.inputs)
            _ = self._located
            _ = self.suite if self.evaluable else None
            student = self._new_student()
            self.__dict__.pop("teacher", None)  # its memory belongs to the training now
            self._write_facts()
            if self.ledger.record("train") is not None or not self.resume:
                # The checkpoints are of a training that ended, from other inputs: there is nothing to go on from.
                shutil.rmtree(self.checkpoints, ignore_errors=True)
                self.ledger.forget("train")
            during = (lambda model: curve_values(evaluate(model, self.suite))) if watch and self.evaluable else None
            report = train(self.recipe, student, self.inputs, self.folder, evaluate=during)
            return {"outputs": [str(self.checkpoints)], "steps": report.resumed_from + report.steps}

        if not self.resume:
            self.ledger.forget("train")
        return self.ledger.step("train", self._training_facts(), work)

    def export(self) -> Result:
        """The student as a folder that sentence-transformers loads."""

        def work() -> Result:
            found, notes = newest_checkpoint(self.checkpoints, self._training_facts())
            for note in notes:
                self.ledger.say("", note)
            if found is None or found.step != self.results["train"]["steps"]:
                self.ledger.forget("train")
                raise ValueError(f"{self.checkpoints}: the last checkpoint is gone or damaged; run the command again")
            student = self._new_student()
            student.load_state_dict(found.model)
            identity = student.embedder.identity()
            before = self.ledger.record("export")
            if before is not None and before["result"]["identity"] != identity:
                for name in ("scorecard.json", "searches.json", "report.html"):
                    (self.folder / name).unlink(missing_ok=True)  # they speak of the model that is replaced now
            with new_folder(self.model) as folder:
                student.embedder.save_pretrained(folder)
            return {"outputs": [str(self.model)], "identity": identity}

        made_from = {"training": self._training_facts(), "steps": self.results["train"]["steps"]}
        return self.ledger.step("export", made_from, work)

    # ------------------------------------------------------------------------------------------ evaluation and report

    def evaluate(self) -> Result:
        """Teacher, untrained student and student on one suite, and a few searches."""
        if not self.evaluable:
            self.ledger.say("evaluate", "no scorecard: no pairs are held out; set suite.folder to evaluation data")
            return {"outputs": []}
        suite = suite_facts(self.recipe.suite, self.evaluation_data)
        # The teacher is judged on all it can read, however short its texts were cut for the student's lessons.
        whole = self.recipe.teacher.model_copy(update={"max_tokens": None})
        teacher = {**self.results["embed"]["identity"], "max_tokens": None}
        untrained = self._untrained_facts()

        def work() -> Result:
            student = Embedder.from_pretrained(self.model)
            scores = (
                self._kept_scores({"suite": suite, "model": teacher}, lambda: load_teacher(whole)),
                self._kept_scores(
                    {"suite": suite, "model": untrained}, lambda: _on_device(self._new_student().embedder)
                ),
                evaluate(_on_device(student), self.suite),
            )
            write_json(self.folder / "scorecard.json", scorecard(*scores, facts=self._scorecard_facts(student)))
            outputs = [str(self.folder / "scorecard.json")]
            if corpus := self._searched():
                found = example_searches(student, *corpus, self.queries)
                write_json(self.folder / "searches.json", found)
                outputs.append(str(self.folder / "searches.json"))
            return {"outputs": outputs}

        made_from = {
            "suite": suite,
            "teacher": teacher,
            "untrained": untrained,
            "student": self.results["export"]["identity"],
            "queries": list(self.queries),
        }
        return self.ledger.step("evaluate", made_from, work)

    def report(self) -> Result:
        """All of it on one page."""
        names = ("scorecard.json", "searches.json", "metrics.jsonl", "summary.json")
        files = {name: sha256_file(self.folder / name) for name in names if (self.folder / name).is_file()}
        return self.ledger.step("report", files, lambda: {"outputs": [str(write_report(self.folder))]})

    # -------------------------------------------------------------------------------- what the steps share, made once

    def _training_facts(self) -> dict[str, Any]:
        """What determines the trained weights."""
        return checkpoint_identity(self.recipe, self.inputs)

    def _untrained_facts(self) -> dict[str, Any]:
        """What determines the student before training, its tokenizer and template included."""
        student = self.recipe.student.model_dump(mode="json")
        return {"student": student, "seed": self.recipe.seed, "teacher": self.results["embed"]["identity"]}

    def _new_student(self) -> Student:
        return build_student(self.recipe.student, self.teacher, self.recipe.seed)

    @property
    def data(self) -> Path:
        """The folder of the prepared tables; its name is their fingerprint."""
        return Path(self.results["prepare"]["outputs"][0])

    @cached_property
    def texts(self) -> Texts:
        """The distinct texts."""
        return Texts.load(self.data / "texts")

    @cached_property
    def teacher(self) -> Embedder:
        """The teacher model."""
        return load_teacher(self.recipe.teacher)

    @cached_property
    def inputs(self) -> Inputs:
        """What the student is trained on."""
        return Inputs(
            texts=self.texts,
            examples=Examples.load(self.data / "examples"),
            tokens=Tokens.load(Path(self.results["tokenize"]["outputs"][0])),
            vectors=self._teacher_vectors,
            made_from={
                "data": self.data.name,
                "tokens": Path(self.results["tokenize"]["outputs"][0]).name,
                "teacher": self.results["embed"]["identity"],
            },
        )

    @cached_property
    def _located(self) -> tuple[VectorStore, np.ndarray]:
        """The teacher's store, opened, and the position in it of every text's vector: int64 [N]."""
        facts = self.results["embed"]
        template = self.recipe.teacher.template
        store = VectorStore.open(Path(facts["outputs"][0]), facts["identity"], facts["width"])
        positions_N = store.locate(vector_keys(self.texts, template))
        if lost := int((positions_N < 0).sum()):
            self.ledger.forget("embed")
            raise ValueError(f"{store.folder}: {lost} of {len(positions_N)} vectors are gone; run it again")
        return store, positions_N

    def _teacher_vectors(self, rows: np.ndarray) -> np.ndarray:
        """The teacher's vectors of rows of the texts table: float32 [n, E]."""
        store, positions_N = self._located
        return store.read(positions_N[rows])

    @property
    def evaluation_data(self) -> Path:
        """The folder of evaluation data: the suite's own, else what was held out."""
        return self.recipe.suite.folder or self.data / "heldout"

    @property
    def evaluable(self) -> bool:
        """Whether there is anything to evaluate on: single texts alone hold nothing out."""
        suite = self.recipe.suite
        return bool(suite.folder or suite.official or entries(self.evaluation_data))

    @cached_property
    def suite(self) -> Suite:
        """The evaluation suite, loaded."""
        return load_suite(self.recipe.suite, self.evaluation_data)

    def _kept_scores(self, made_from: dict[str, Any], model: Callable[[], Embedder]) -> Scores:
        return kept_scores(self.recipe.cache / "scores", made_from, lambda: _on_device(model()), lambda: self.suite)

    def _searched(self) -> tuple[Path, str] | None:
        """The first retrieval task of the suite that lies in a folder, and its instruction."""
        for task in self.suite.tasks:
            if task.kind == "retrieval" and (self.evaluation_data / task.name).is_dir():
                return self.evaluation_data / task.name, task.instruction
        return None

    def _scorecard_facts(self, student: Embedder) -> dict[str, Any]:
        embed, prepared = self.results["embed"], self.results["prepare"]["summary"]
        return {
            "teacher": self.recipe.teacher.model,
            "parameters": {"teacher": embed["parameters"], "student": _parameters(student)},
            "width": {"teacher": embed["width"], "student": student.width},
            "examples": prepared["examples"],
            "steps": self.results["train"]["steps"],
            "training seconds": self.ledger.seconds["train"],
        }

    # ------------------------------------------------------------------------------------------------- what is shown

    def _write_facts(self) -> None:
        """config.yaml and summary.json. Written when the steps before training are done, so that a recipe that fails
        on its way there leaves the run folder as the last good one made it."""
        embed, tokens = self.results.get("embed"), self.results.get("tokenize")
        summary = dict(self.results["prepare"]["summary"])
        if embed is not None:
            summary["vectors"] = embed["vectors"] | {"longer than the teacher's max tokens": embed["cut"]}
        if tokens is not None:
            summary["tokens"] = {"all": tokens["tokens"], "texts longer than the student's max tokens": tokens["cut"]}
        write_json(self.folder / "summary.json", summary)
        write_text(self.folder / "config.yaml", dump_config(self.recipe))

    def _show(self) -> None:
        """Scorecard, searches and where everything lies."""
        for name in ("scorecard.json", "searches.json"):
            if (self.folder / name).is_file():
                found = read_json(self.folder / name)
                if name == "scorecard.json":
                    self.console.print(terminal_table(found))
                else:
                    print_searches(found, self.console)
        self.console.print()
        for name in ("model", "scorecard.json", "report.html"):
            if (self.folder / name).exists():
                self.ledger.say(name.partition(".")[0], str(self.folder / name))


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _on_device(model: Embedder) -> Embedder:
    return model.to("cuda" if torch.cuda.is_available() else "cpu")
