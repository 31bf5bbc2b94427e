"""The steps of a run, from text to report: what each is made from, what it does, where its result lies.

What only the evaluation needs is imported there: mteb and scipy take seconds on every rank, and a training begins
without them.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Console

from data_prep.embed import embed_texts
from data_prep.teacher import ImportedConfig, Teacher, TeacherConfig, load_teacher, uncut
from data_prep.tokenized import tokenize_texts, tokens_fingerprint
from data_prep.units import Share, launched_share
from data_prep.vectors_care import rows_stored
from embedding.config import dump_config
from embedding.embedder import Embedder
from embedding.files import fingerprint, new_folder, read_json, sha256_file, stamps, write_json
from embedding.layout import resolve_model
from eval.ranks import Ranks
from launch.chosen import chosen
from launch.mining import mine_negatives
from launch.prepared import data_folder, prepare_data, prepared_facts
from launch.runs import keep_finished
from launch.show import show_run
from launch.steps import Ledger, Result
from launch.workspace import Workspace, on_device, parameters, placed, query_prompts, write_facts
from train.distributed import from_main, gather_objects, rank, world_size
from train.loop import train
from train.plan import check_student, plan_stages, remarks
from train.recipe import Recipe
from train.student import finished

Step = Literal["prepare", "embed", "mine", "tokenize", "train", "export", "evaluate", "report"]

NO_VECTORS: Result = {"vectors": {"computed": 0, "reused": 0}, "tokens": 0, "cut": 0}


class Pipeline:
    """One recipe on its way to a model; `at` holds where things lie and what the finished steps say."""

    def __init__(
        self,
        recipe: Recipe,
        console: Console,
        *,
        resume: bool = True,
        queries: Sequence[str] = (),
        on_work: Callable[[str], None] = lambda name: None,
    ) -> None:
        """`resume`: go on from the newest checkpoint; `queries`: the example searches, else some held-out queries;
        `on_work` is told each step that begins to work."""
        self.recipe = recipe
        self.console = console
        self.resume = resume
        self.queries = queries
        self.at = Workspace(recipe)
        self.ledger = Ledger(self.at.folder, recipe.cache, console, on_work)
        self._until: Step = "report"

    def run(self, until: Step = "report") -> None:
        """Do every step up to `until` that is not finished.

        Every rank calls this. They embed and train together; everything else rank 0 does while the others wait.

        Raises:
            ValueError: something the user can mend; what is finished stays.
        """
        self._until = until
        self.resume = self.resume or from_main(self.ledger.restarted)
        steps: dict[Step, Callable[[], Result]] = {
            "prepare": self.prepare,
            "embed": self.embed,
            "mine": lambda: mine_negatives(self.at, self.ledger),
            "tokenize": self.tokenize,
            "train": self.train,
            "export": self.export,
            "evaluate": self.evaluate,
            "report": self.report,
        }
        for step in get_args(Step):
            if step == "mine" != until and self.recipe.mine is None:
                continue
            together = step in ("embed", "train")
            self.at.results[step] = steps[step]() if together else from_main(steps[step])
            if step == until:
                break
        if rank() == 0 and "train" in self.at.results:
            config = self.at.folder / "config.yaml"
            if until == "report" and config.read_text(encoding="utf-8") != dump_config(self.recipe):
                write_facts(self.at)  # only what comes after the training was changed, or a licence
            show_run(self.at.folder, self.console)
        elif rank() == 0 and self.ledger.record("train") is None:
            write_facts(self.at)
        elif rank() == 0:
            self.ledger.say("", "config.yaml and summary.json stay those of the finished training; give another `name`")

    # ---------------------------------------------------------------------------------------- text, vectors and tokens

    def prepare(self) -> Result:
        """Sources to texts, examples and held-out tasks."""
        made_from = prepared_facts(self.recipe)
        folder = data_folder(self.recipe, made_from)

        def work() -> Result:
            return {"outputs": [str(folder)], "summary": self._prepare(made_from)}

        result = self.ledger.step("prepare", made_from, work, share=True)
        summary = result["summary"]
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in summary["dropped"].items()) or "none"
        self.ledger.say("", f"{summary['texts']:,} texts, {summary['examples']:,} examples; dropped: {dropped}")
        return result

    def _prepare(self, made_from: dict[str, Any]) -> Result:
        return prepare_data(self.recipe, made_from)

    def embed(self) -> Result:
        """The teacher's vector of every text that its store lacks. On every rank, each with its share of the texts."""
        if self.at.teacherless:
            self.ledger.say("embed", "no teacher: the student learns from labels alone")
            return {"outputs": [], "identity": None, "width": None, "parameters": None, **NO_VECTORS}
        from_main(self._notice_lost_vectors)
        made_from = from_main(self._embedding_facts)
        due = from_main(lambda: self.ledger.due("embed", made_from, share=True))
        if due and self._until not in ("embed", "mine"):
            from_main(self.at.foresee)
        if due and rank() > 0:
            self._embed()
        begun = due and world_size() > 1
        return from_main(lambda: self.ledger.step("embed", made_from, self._embed, share=True, begun=begun))

    def _notice_lost_vectors(self) -> None:
        """A store that has fewer vectors than this run left in it, as after `eyas vectors repair`, is not finished."""
        record = self.ledger.record("embed")
        if record is not None:
            lost = record["result"].get("rows", 0) - rows_stored(Path(record["result"]["outputs"][0]))
            if lost > 0:
                self.ledger.say("", f"{lost:,} vectors are gone from the store; they are computed again")
                self.ledger.forget("embed")

    def _embedding_facts(self) -> Result:
        config = self.recipe.teacher
        files = {}
        if isinstance(config, TeacherConfig):
            # Not contents: hashing a large teacher takes longer than finding that nothing is to be done.
            files = stamps(resolve_model(config.model, config.revision))
        return {"data": self.at.data.name, "teacher": config.model_dump(mode="json"), "files": files}

    def _embed(self) -> Result:
        teacher = self.at.teacher
        alone = self._until == "embed" and world_size() == 1  # one of many that know nothing of each other, maybe
        share = launched_share() if alone else Share(rank(), world_size())
        report = embed_texts(
            self.recipe.teacher, self.at.texts, self.at.cache / "vectors", embedder=teacher, share=share
        )
        for line in (report.note, *(f"damaged, computed again: {name}" for name in report.set_aside)):
            if line:
                self.ledger.say("", line)
        computed, tokens, cut = zip(*gather_objects((report.computed, report.tokens, report.cut)), strict=True)
        return {
            "outputs": [str(report.store)],
            "identity": report.identity,
            "width": report.width,
            "parameters": parameters(teacher) if isinstance(teacher, Embedder) else None,
            "vectors": {"computed": sum(computed), "reused": report.reused},
            "rows": rows_stored(report.store),
            "tokens": sum(tokens),
            "cut": sum(cut),
        }

    def tokenize(self) -> Result:
        """The student's token ids of every text."""

        def work() -> Result:
            embedder = self.at.new_student().embedder
            made_from = tokens_fingerprint(self.at.data, embedder.tokenizer, embedder.template)
            folder = self.at.cache / "tokens" / fingerprint(made_from)
            lengths = tokenize_texts(self.at.data, embedder.tokenizer, embedder.template, folder).lengths
            cut = int((lengths > embedder.max_tokens).sum())
            return {"outputs": [str(folder)], "tokens": int(lengths.sum()), "cut": cut}

        made_from = {"data": self.at.data.name, **self.at.untrained_facts()}
        return self.ledger.step("tokenize", made_from, work, share=True)

    # -------------------------------------------------------------------------------------------- training and export

    def train(self) -> Result:
        """The student through all stages of the recipe; its weights are in the last checkpoint. On every rank."""
        due = from_main(self._training_is_due)
        if rank() > 0:
            return self._train() if due else {}
        return self.ledger.step("train", self.at.trained_from(), self._train, begun=not self.resume)

    def _training_is_due(self) -> bool:
        due = not self.resume or self.ledger.due("train", self.at.trained_from())
        if due:
            self._check_before_training()
        return due

    def _keep_if_finished(self) -> None:
        """A finished run is kept under another name before its model is written over."""
        if self.ledger.record("train") is not None and self.at.model.is_dir():
            kept = keep_finished(self.at.folder)
            self.ledger.say("", f"the finished run is kept in {kept}")

    def _train(self) -> Result:
        student = self.at.new_student()
        check_student(self.recipe, student, self.at.inputs)
        self.at.free_teacher()  # its memory belongs to the training now
        if rank() == 0:
            self.ledger.say("", placed())
            for remark in remarks(self.recipe, self.at.texts, student.embedder.template):
                self.ledger.say("", remark)
            # Not before: what is refused on its way leaves the folder as the last good run made it.
            self._keep_if_finished()
            write_facts(self.at)
            if self.ledger.record("train") is not None or not self.resume:
                # The checkpoints are of a training that ended, from other inputs: there is nothing to go on from.
                shutil.rmtree(self.at.checkpoints, ignore_errors=True)
                self.ledger.forget("train")
                if not self.resume:
                    shutil.rmtree(self.at.folder / "stages", ignore_errors=True)  # nor are their results
                    self.ledger.count_restart()

        def scores(model: Embedder, ranks: Ranks) -> dict[str, float]:
            from eval.evaluate import evaluate
            from launch.scoring import curve_values

            return curve_values(evaluate(model, self.at.watched, ranks=ranks), self.at.decided_by_scores)

        during = scores if self.at.evaluates_in_training else None
        report = train(
            self.recipe,
            student,
            self.at.inputs,
            self.at.folder,
            evaluate=during,
            judge=self.at.judge,
            resume=self.resume,
        )
        steps = report.resumed_from + report.steps
        return {"outputs": [str(self.at.checkpoints)], "steps": steps, "seconds before": round(report.before, 3)}

    def _check_before_training(self) -> None:
        """Find what does not fit now, before an earlier training is touched or hours are spent.

        Raises:
            ValueError: a stage does not fit the data, a teacher vector is lost, or the evaluation suite is broken.
        """
        plan_stages(self.recipe, self.at.inputs)
        if lost := int((self.at.positions_N < 0).sum()):
            self.ledger.forget("embed")
            raise ValueError(f"{self.at.store.folder}: {lost} vectors are gone; the same command computes them again")
        if self.at.evaluates_in_training or (self.at.evaluable and self._until in ("evaluate", "report")):
            _ = self.at.suite
        if self.at.decided_by_scores and (failed := self.at.watched.failed):
            name, why = next(iter(failed.items()))
            raise ValueError(
                f"{len(failed)} tasks of the suite cannot be scored, and its mean decides what becomes the model "
                f"(tracking.export, floor, patience, or a greedy merge): {name}: {why}; mend them or leave them out"
            )

    def export(self) -> Result:
        """The student as a folder that sentence-transformers loads."""
        chooses = self.recipe.tracking.chooses

        def work() -> Result:
            found = chosen(self.at, self.ledger)
            student = self.at.new_student()
            student.load_state_dict(found.model)
            model = finished(student, keep_projection=self.recipe.student.keep_projection)
            model.prompts = query_prompts(self.at.inputs, model.template)
            identity = model.identity()
            before = self.ledger.record("export")
            if before is not None and before["result"]["identity"] != identity:
                for name in ("scorecard.json", "looks.json", "searches.json", "report.html"):
                    (self.at.folder / name).unlink(missing_ok=True)  # they speak of the model that is replaced now
            with new_folder(self.at.model) as folder:
                model.save_pretrained(folder)
            self.at.free_teacher()  # where the student was cut from it; the evaluation loads its own
            return {"outputs": [str(self.at.model)], "identity": identity, "step": found.step}

        made_from = {
            "training": self.at.training_facts(),
            "steps": self.at.results["train"]["steps"],
            "projection": self.recipe.student.keep_projection,
        }
        if chooses:
            made_from["export"] = [self.recipe.tracking.floor or "best", self.at.judge]
        return self.ledger.step("export", made_from, work)

    # ------------------------------------------------------------------------------------------ evaluation and report

    def evaluate(self) -> Result:
        """Teacher, untrained student and student on one suite, and a few searches."""
        if not self.at.evaluable:
            self.ledger.say("evaluate", "no scorecard: no pairs are held out; set suite.folder to evaluation data")
            return {"outputs": []}
        if isinstance(self.recipe.teacher, ImportedConfig):
            self.ledger.say("evaluate", "no scorecard: the teacher's vectors are imported, it cannot be scored itself")
            return {"outputs": []}
        from eval.looks import side_by_side
        from eval.scorecard import scorecard
        from launch.scoring import FORMAT, curve_ends, kept_scores, measured
        from launch.searches import example_searches

        suite = self.at.suite_facts
        # The teacher is judged on all it can read, however short its texts were cut for the student's lessons.
        whole = uncut(self.recipe.teacher)
        stored = self.at.results["embed"]["identity"] or {}
        untrained = self.at.untrained_facts()
        # Without a teacher, what the student began as takes its place: retention then says what was forgotten.
        teacher = {name: None if name in {"max_tokens", "max_bytes"} else fact for name, fact in stored.items()}
        teacher = untrained if self.at.teacherless else teacher

        def reference() -> Teacher:
            return self._beginning() if self.at.teacherless else load_teacher(whole, alone=True)

        def work() -> Result:
            student = Embedder.from_pretrained(self.at.model)
            cache = self.at.cache / "scores"
            others = (
                ({"suite": suite, "model": teacher}, reference),
                ({"suite": suite, "model": untrained}, self._beginning),
            )
            of_teacher, of_untrained = (kept_scores(cache, self.at.suite, *other) for other in others)
            scores = (of_teacher, of_untrained, measured(on_device(student), self.at.suite, self.at.suite.views))
            outputs = [self.at.folder / name for name in ("scorecard.json", "looks.json")]
            card = scorecard(*scores, facts=self._scorecard_facts(student))
            if rows := self.recipe.tracking.watched_rows:
                card |= curve_ends(cache, self.at.watched, rows, others, student)
            write_json(outputs[0], card)
            write_json(outputs[1], side_by_side(self.at.suite, scores[0]["look"], scores[2]["look"]))
            if corpus := self.at.searched:
                outputs.append(self.at.folder / "searches.json")
                write_json(outputs[2], example_searches(student, *corpus, self.queries))
            return {"outputs": [str(path) for path in outputs]}

        made_from = {
            "format": FORMAT,
            "suite": suite,
            "teacher": teacher,
            "untrained": untrained,
            "student": self.at.results["export"]["identity"],
            "queries": list(self.queries),
            "watched": self.recipe.tracking.watched_rows,
        }
        before = self.at.folder / "scorecard.json"
        if before.is_file() and read_json(before).get("failed"):
            self.ledger.forget("evaluate")  # what failed is tried again; the scores that are kept are not taken anew
        return self.ledger.step("evaluate", made_from, work)

    def _beginning(self) -> Embedder:
        student = self.at.new_student().embedder
        self.at.free_teacher()  # which it may begin from, and whose memory is none of its own
        return on_device(student)

    def report(self) -> Result:
        """All of it on one page."""
        names = ("scorecard.json", "looks.json", "searches.json", "metrics.jsonl", "summary.json")
        files: Result = {
            name: sha256_file(self.at.folder / name) for name in names if (self.at.folder / name).is_file()
        }

        def work() -> Result:
            from eval.report import write_report
            from launch.card import write_card

            outputs = [str(write_report(self.at.folder))]
            if self.at.model.is_dir():
                outputs.append(str(write_card(self.recipe, self.at.folder, self.at.model)))
            return {"outputs": outputs}

        licences = [source.licence for source in self.recipe.data.used()]
        shown = {"card": self.recipe.card.model_dump(mode="json"), "licences": licences}
        return self.ledger.step("report", files | shown, work)

    def _scorecard_facts(self, student: Embedder) -> dict[str, Any]:
        embed, prepared = self.at.results["embed"], self.at.results["prepare"]["summary"]
        return {
            "teacher": self.recipe.teacher.model,
            "parameters": {"teacher": embed["parameters"], "student": parameters(student)},
            "width": {"teacher": embed["width"], "student": student.width},
            "examples": prepared["examples"],
            "steps": self.at.results["train"]["steps"],
            "training seconds": self.ledger.seconds["train"],
        }

    def fingerprints(self) -> dict[str, str]:
        """What each finished step was made from, as a fingerprint."""
        records = {step: self.ledger.record(step) for step in self.at.results}
        return {step: record["fingerprint"] for step, record in records.items() if record is not None}
