"""The recipe of a run: teacher, student, data, stages, evaluation. Everything a run does is decided here."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from data_prep.build import DataConfig
from data_prep.mine import MineConfig
from data_prep.teacher import AnyTeacher, NoTeacherConfig
from embedding.config import Config, Place
from embedding.files import expanded
from embedding.instruction import Template
from embedding.pooling import Pooling
from eval.suite import SuiteConfig
from train.losses import PROJECTED, Loss, Match
from train.merge import Method
from train.spikes import SpikeConfig

Frozen = Literal["embeddings", "layers", "projection"]
"""Parts of a student: its token embeddings, everything else of the model, the map to the teacher's width."""


class BuiltStudent(Config):
    """A decoder built from a config, with random layers: the smallest, and the one that trains longest."""

    kind: Literal["built"] = "built"
    architecture: Literal["qwen3", "gemma3"] = "qwen3"
    layers: int = Field(default=4, ge=1)
    width: int = Field(default=384, ge=8)
    heads: int = Field(default=6, ge=1)
    kv_heads: int = Field(default=2, ge=1)
    head_dim: int = Field(default=64, ge=8)
    ffn: int = Field(default=1024, ge=8)
    positions: int = Field(default=32_768, ge=2)
    tokenizer: str = "teacher"
    """`teacher`, or a model folder or hub id whose tokenizer is taken."""
    embeddings: Literal["teacher", "random"] = "teacher"
    """`teacher`: the teacher's token embeddings, which needs its tokenizer and its width."""
    init: Literal["random", "static"] = "random"
    """`static`: training begins by setting the weights in closed form (`train.static_start`)."""


class PretrainedStudent(Config):
    """An existing checkpoint: a folder, a hub id, or `package:NAME/FOLDER`."""

    kind: Literal["pretrained"] = "pretrained"
    model: str
    revision: str | None = None


class PrunedStudent(Config):
    """Some layers of a larger model of the same family, `teacher` or a folder or hub id."""

    kind: Literal["pruned"] = "pruned"
    model: str = "teacher"
    layers: list[int] | None = Field(default=None, min_length=1)
    """The layers kept, counted from 0, in order; or `keep` says how many."""
    keep: int | None = Field(default=None, ge=1)
    by: Literal["position", "importance", "top"] = "position"
    """How `keep` chooses: at even distances, the last among them; those that change the states of the run's own texts
    most (`train.pruning`); or the last ones."""
    fold: bool = False
    """Training begins by putting the layers below the first one kept into the token embeddings, as far as a table can
    hold them (`train.fold`). The more lies below, the better: with the last layers kept."""

    @field_validator("layers")
    @classmethod
    def _ascending(cls, layers: list[int] | None) -> list[int] | None:
        if layers is not None and (sorted(set(layers)) != layers or layers[0] < 0):
            raise ValueError("expected ascending, distinct layer numbers from 0")
        return layers

    @model_validator(mode="after")
    def _one_way(self) -> "PrunedStudent":
        if (self.layers is None) == (self.keep is None):
            raise ValueError("give either `layers`, or `keep`: how many")
        if self.fold and self.layers is not None and self.layers[0] == 0:
            raise ValueError(f"fold: layer 0 is among layers {self.layers}, so none lies below the first one kept")
        return self


class Lora(Config):
    """Low-rank adapters: the model's own weights stay, the adapters are trained and merged on export."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    """The adapters' output is scaled by alpha / rank."""
    targets: list[str] | None = Field(default=None, min_length=1)
    """Names of linear layers, such as q_proj; None: all of them."""
    four_bit: bool = False
    """QLoRA (Dettmers 2023, arXiv:2305.14314): the frozen weights of these layers in 4 bits (nf4) while the adapters
    are trained. Needs a GPU and `pip install 'eyas[qlora]'`; the exported model has the weights that the 4 bits say."""


class StudentConfig(Config):
    """The student: where its weights start, and how it turns a text into a vector."""

    start: Annotated[BuiltStudent | PretrainedStudent | PrunedStudent, Field(discriminator="kind")] = BuiltStudent()
    pooling: Pooling | None = None
    """None: last for a built student, what the checkpoint says for another."""
    template: Template | None = None
    """None: the Harrier form for a built student, what the checkpoint says for another."""
    max_tokens: int = Field(default=512, ge=4)
    """Of the exported model; stages may train on shorter cuts."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of every dropout layer, whatever the checkpoint says: with a teacher's vectors to match, noise costs and does not
    pay; and packed attention on CUDA has no dropout."""
    projection: Literal["learned", "pca", "none"] = "learned"
    """Where widths differ, student vectors are mapped to the teacher's width for the match loss: `learned` from an
    orthogonal start, `pca` from the teacher's principal directions. `none` with other widths: only losses that compare
    similarities."""
    keep_projection: bool = False
    """Export the map as part of the model: its vectors are the teacher's, for queries by the student against documents
    by the teacher. False: the model has its own, narrower vectors."""
    lora: Lora | None = None
    """Train adapters instead of the weights (`pip install 'eyas[lora]'`)."""

    @field_validator("projection", mode="before")
    @classmethod
    def _direction(cls, value: Any) -> Any:
        if isinstance(value, str) and "teacher" in value:
            raise ValueError(
                "the map goes from the student's vectors to the teacher's; one that is learned from the teacher's to "
                "the student's collapses, since mapping everything to one point makes the loss zero. Expected learned, "
                "pca or none"
            )
        return value


class Stage(Config):
    """One stretch of training with its data, losses and schedule."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    """Either steps or epochs over the stage's rows."""
    batch_size: int = Field(default=256, ge=1)
    """Rows of the *global* batch, whatever the number of ranks."""
    max_tokens: int = Field(default=256, ge=4)
    losses: list[Loss] = Field(default=[Match()], min_length=1)
    negatives: int = Field(default=4, ge=0)
    """Hard negatives taken from each row that has some."""
    sources: dict[str, float] | None = None
    """Weights by source name; None: size ** alpha."""
    alpha: float = Field(default=1.0, ge=-1)
    """1 draws each row alike, 0 each source alike; below 0 the smaller source more often."""
    one_source: bool = True
    """Every batch from one source, so that in-batch negatives share a task."""
    learning_rate: float = Field(default=1e-4, gt=0)
    embedding_learning_rate: float | None = Field(default=None, gt=0)
    """For the token embeddings; None: the same."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient of the global batch."""
    freeze: list[Frozen] = Field(default=[])
    """Parts that keep their weights in this stage."""
    begin: str | None = None
    """The earlier stage whose weights this one starts from; None: the one before. Several stages that begin at one are
    the mixtures of a merge."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """The stage's result is the exponential moving average of its weights with this decay; None: the last weights."""


class MergeConfig(Config):
    """What becomes of the weights at the ends of several stages: one model."""

    of: list[str] = Field(min_length=2)
    """Names of stages."""
    method: Method = "mean"
    """mean; slerp; greedy: the soup that scores best on the run's suite, which must be there."""
    weights: list[Annotated[float, Field(gt=0)]] | None = None


class TrackingConfig(Config):
    """What is written while training."""

    log_every: int = Field(default=10, ge=1)
    checkpoint_every: int = Field(default=200, ge=1)
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints kept."""
    evaluate_every: float = Field(default=0.0, ge=0)
    """Between two evaluations: below 1 a share of the whole training, from 1 on steps; 0: only the end."""
    evaluate_rows: int | None = Field(default=None, ge=8)
    """Rows or queries of each task, and documents, in an evaluation while training; None: all. Fewer take less of the
    training's time, and give the scores of a smaller, easier suite: the curves are drawn beside the teacher's there."""
    export: Literal["last", "best"] = "last"
    """Which checkpoint becomes the model: the last one, or the one with the best Mean(TaskType) while training."""
    patience: int | None = Field(default=None, ge=1)
    """Stop early after so many evaluations in a row that were not better than the best; None: never."""
    floor: float | None = Field(default=None, gt=0, le=1)
    """A guard against forgetting: the training ends when Mean(TaskType) falls below this share of what it was before
    the first step, and the last checkpoint above becomes the model. None: no guard."""
    wandb: bool = False
    """Also log to wandb: offline where there is no key."""

    @field_validator("evaluate_every")
    @classmethod
    def _share_or_steps(cls, every: float) -> float:
        if every > 1 and every != int(every):
            raise ValueError("expected a share below 1, or a whole number of steps")
        return every

    @model_validator(mode="after")
    def _needs_scores(self) -> "TrackingConfig":
        if not self.evaluate_every and self.decides:
            raise ValueError("export: best, patience and floor need evaluations while training; set evaluate_every")
        if self.floor is not None and (self.export == "best" or self.patience is not None):
            raise ValueError(
                "floor chooses the last good checkpoint, export: best and patience the best; give one of them"
            )
        return self

    @property
    def decides(self) -> bool:
        """Whether evaluations decide which weights come out; else they only watch."""
        return self.chooses or self.patience is not None

    @property
    def chooses(self) -> bool:
        """Whether evaluations choose which checkpoint becomes the model."""
        return self.export == "best" or self.floor is not None

    @property
    def watched_rows(self) -> int | None:
        """`evaluate_rows` where anything is evaluated while training."""
        return self.evaluate_rows if self.evaluate_every else None


class ComputeConfig(Config):
    """How the step uses the machine; nothing here changes what is computed, up to rounding and, with
    `student.dropout`, to the masks that are drawn for each chunk."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU that computes in it, fp32 elsewhere. Weights, similarities and losses are fp32 either way."""
    token_budget: int | None = Field(default=None, ge=8)
    """Tokens of a chunk, with the padding where chunks are padded; None: measured at the start."""
    activation_gib: float | None = Field(default=None, gt=0)
    """Memory for kept activations; chunks beyond it are recomputed. None: nearly all that a GPU has,
    half of what is free elsewhere."""
    compile: bool = False
    """torch.compile for the layers, whatever the lengths: half a minute at the start, then faster steps on a GPU."""
    layer_checkpointing: bool = False
    """Keep only the layers' inputs of a chunk: slower, for texts so long that one chunk does not fit."""


class CardConfig(Config):
    """What the model card says that a run cannot know."""

    license: str | None = None
    """Of the model, as the hub names licences, such as apache-2.0."""
    data_licence: str | None = None
    """Of the training data, in words."""
    languages: list[str] = Field(default=[])
    """Codes such as en."""


class Recipe(Config):
    """A run, whole."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    output: Place = Path("runs")
    """The run's folder is output/name."""
    cache: Place = Path("runs/cache")
    """Prepared data, tokens, teacher vectors and scores, shared by all runs."""
    seed: int = Field(default=0, ge=0)
    data: DataConfig
    teacher: AnyTeacher
    mine: MineConfig | None = None
    """Hard negatives for the rows, found with vectors; None: those that the sources bring."""
    student: StudentConfig = StudentConfig()
    stages: list[Stage] = Field(min_length=1)
    merge: MergeConfig | None = None
    """After the last stage; None: the last stage's weights are the model."""
    spikes: SpikeConfig = SpikeConfig()
    card: CardConfig = CardConfig()
    suite: SuiteConfig = SuiteConfig()
    tracking: TrackingConfig = TrackingConfig()
    compute: ComputeConfig = ComputeConfig()

    @field_validator("stages")
    @classmethod
    def _stages(cls, stages: list[Stage]) -> list[Stage]:
        names = [stage.name for stage in stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names must differ, got {', '.join(names)}")
        for stage in stages:
            if (stage.steps is None) == (stage.epochs is None):
                has = "neither" if stage.steps is None else f"steps {stage.steps} and epochs {stage.epochs:g}"
                raise ValueError(
                    f"stage {stage.name!r}: give either steps or epochs, got {has} (null takes back what a recipe has)"
                )
            if stage.begin is not None and stage.begin not in names[: names.index(stage.name)]:
                raise ValueError(f"stage {stage.name!r} begins from {stage.begin!r}, which is no earlier stage")
        return stages

    @model_validator(mode="after")
    def _measured(self) -> "Recipe":
        averaged = [stage.name for stage in self.stages if stage.ema is not None]
        if averaged and self.tracking.decides:
            raise ValueError(
                f"stage {averaged[0]!r} has ema, and tracking.export best, floor and patience go by the weights of a "
                "step, not by their average: leave out one of the two"
            )
        return self

    @model_validator(mode="after")
    def _projected(self) -> "Recipe":
        if not self.student.keep_projection:
            return self
        if self.student.projection == "none":
            raise ValueError("student.keep_projection exports a map, and student.projection is none; give one of them")
        if not any(isinstance(loss, PROJECTED) for stage in self.stages for loss in stage.losses):
            raise ValueError(
                "student.keep_projection exports the map to the teacher's vectors, and no stage trains it: only a "
                "match loss does (or one of your own); add one, or leave keep_projection out"
            )
        return self

    @model_validator(mode="after")
    def _apart(self) -> "Recipe":
        """What a run writes must not be what it is made from: the next call would find that changed, and begin anew."""
        models = {
            "mine.model": self.mine.model if self.mine else None,
            "student.start.model": getattr(self.student.start, "model", None),
            "teacher.model": self.teacher.model if self.teacher.kind == "local" else None,
        }
        folder = (self.output / self.name).resolve()
        for setting, model in models.items():
            if model and Path(expanded(model)).resolve().is_relative_to(folder):
                raise ValueError(
                    f"{setting} {model} lies in {self.output / self.name}, which this run writes to; give this round "
                    "another name"
                )
        return self

    @model_validator(mode="after")
    def _mined(self) -> "Recipe":
        if self.mine is not None and self.mine.model is None and isinstance(self.teacher, NoTeacherConfig):
            raise ValueError("mine: teacher.kind is none, so there are no vectors to mine with; set mine.model")
        return self

    @model_validator(mode="after")
    def _merged(self) -> "Recipe":
        if self.merge is None:
            return self
        names = [stage.name for stage in self.stages]
        for name in self.merge.of:
            if name not in names:
                raise ValueError(f"merge.of: no stage is called {name!r}; the stages are {', '.join(names)}")
        if self.tracking.decides:
            raise ValueError(
                "tracking.export best, floor and patience choose a checkpoint or end the training early, and merge "
                "makes another model of whole stages; give one of them"
            )
        if self.student.lora is not None and self.student.lora.four_bit:
            raise ValueError(
                "merge adds the adapters of each stage to the weights, which student.lora.four_bit keeps packed; train "
                "the stages as runs of their own, and merge the exported models with `eyas merge`"
            )
        weights = self.merge.weights
        if weights and self.merge.method == "greedy":
            raise ValueError("merge.weights: a greedy soup finds its own; leave them out")
        if weights and len(weights) != len(self.merge.of):
            raise ValueError(f"merge.weights: expected one for each of the {len(self.merge.of)} stages, got {weights}")
        return self

    def check_ranks(self, ranks: int) -> None:
        """Whether so many ranks can share the batches, which are the recipe's however many there are.

        Raises:
            ValueError: they do not divide the batch of a stage.
        """
        for stage in self.stages:
            if stage.batch_size % ranks:
                raise ValueError(
                    f"stage {stage.name!r}: batch_size {stage.batch_size}: expected a multiple of the {ranks} ranks"
                )
