"""Commands on finished models: `eyas merge` and `eyas push`."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from embedding.embedder import Embedder


def merge(
    models: Annotated[list[Path], typer.Argument(help="Model folders of one shape, two or more.", exists=True)],
    out: Annotated[Path, typer.Option(help="Where the merged model goes.")],
    method: Annotated[str, typer.Option(help="mean, slerp, or greedy: the soup that scores best.")] = "mean",
    weight: Annotated[list[float] | None, typer.Option(help="One for each model, in order.")] = None,
    suite: Annotated[Path | None, typer.Option(help="Evaluation data for greedy: a folder as suite.folder.")] = None,
) -> None:
    """Merge models that began at the same weights into one.

    [bold]Examples[/]

      eyas merge runs/a/model runs/b/model runs/c/model --out runs/merged

      eyas merge runs/a/model runs/b/model --method slerp --weight 2 --weight 1 --out runs/merged

      eyas merge runs/a/model runs/b/model --method greedy --suite evaluation --out runs/soup
    """
    from embedding.embedder import Embedder
    from embedding.files import differences, new_folder
    from eval.evaluate import evaluate
    from eval.suite import SuiteConfig, load_suite
    from train.merge import State, merged

    if method not in ("mean", "slerp", "greedy"):
        raise ValueError(f"--method {method}: expected mean, slerp or greedy")
    if out.exists() and not (out / "modules.json").is_file():
        raise ValueError(f"--out {out}: it is there and no model folder, and would be replaced; give a new folder")
    loaded = [Embedder.from_pretrained(folder) for folder in models]
    first, *others = (_make(model) for model in loaded)
    for folder, other in zip(models[1:], others, strict=True):
        if differ := differences(first, other):
            raise ValueError(
                f"{folder}: of another make than {models[0]} ({'; '.join(differ[:3])}); merge models that began at the "
                "same weights"
            )
    score = None
    if suite is not None:
        tasks = load_suite(SuiteConfig(folder=suite), suite)
        probe = Embedder.from_pretrained(models[0])

        def score(state: State) -> float:
            probe.load_state_dict(state)
            return float(evaluate(probe, tasks)["means"]["task_type"])

    state, said = merged([dict(model.state_dict()) for model in loaded], method, weight, score)  # type: ignore[arg-type]
    loaded[0].load_state_dict(state)
    with new_folder(out) as folder:
        loaded[0].save_pretrained(folder)
    Console().print(f"{out}: {said}", soft_wrap=True, highlight=False)


def _make(model: "Embedder") -> dict[str, Any]:
    """What models must share to be merged: all that determines a vector but the weights, and the shape."""
    facts = {name: fact for name, fact in model.identity().items() if name not in ("weights", "max_tokens", "dtype")}
    config = model.backbone.config.to_dict()
    written_by = ("_name_or_path", "transformers_version", "dtype", "architectures")
    return {**facts, "shape": {name: fact for name, fact in config.items() if name not in written_by}}


def push(
    model: Annotated[Path, typer.Argument(help="A model folder, or a run's folder with model/ in it.", exists=True)],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the hub.")],
    public: Annotated[bool, typer.Option("--public", help="A new repository is not private.")] = False,
    dry_run: Annotated[Path | None, typer.Option(help="Write what would be uploaded here instead.")] = None,
) -> None:
    """Upload a model with its card to a hub repository, with the token that `hf auth login` stored.

    [bold]Examples[/]

      eyas push runs/mine someone/mine --public

      eyas push runs/mine someone/mine --dry-run upload
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HFValidationError

    from embedding.files import write_text
    from embedding.hub import TRANSPORT_ERROR
    from embedding.layout import require_weights
    from launch.card import check_card, published

    folder = model / "model" if (model / "model").is_dir() else model
    require_weights(folder)
    console = Console()
    for line in check_card(folder):
        console.print(f"card: {line}", style="yellow", highlight=False)
    card = published((folder / "README.md").read_text(encoding="utf-8"), repository)
    try:
        if repository.count("/") != 1:
            raise ValueError(f"{repository}: expected OWNER/NAME")
        if dry_run is not None:
            shutil.copytree(folder, dry_run / repository, dirs_exist_ok=True)
            write_text(dry_run / repository / "README.md", card)
            console.print(f"{dry_run / repository}: what would be uploaded", soft_wrap=True, highlight=False)
            return
        api = HfApi()
        api.create_repo(repository, private=not public, exist_ok=True)
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        contents: dict[str, Path | bytes] = {**files, "README.md": card.encode()}
        added = [CommitOperationAdd(name, content) for name, content in contents.items()]
        found = api.create_commit(repository, added, commit_message="Upload of eyas")
    except HFValidationError as error:
        raise ValueError(str(error)) from None
    except TRANSPORT_ERROR as error:
        raise ValueError(
            f"{repository}: the hub refused or cannot be reached: {str(error).splitlines()[0]}; `hf auth login` first"
        ) from None
    console.print(str(found), soft_wrap=True, highlight=False)
