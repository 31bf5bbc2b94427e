"""The sentence-transformers folder layout, read and written: modules.json, pooling, dense heads, prompts, max tokens.

The files are written in the form every release and server since 2.x reads; both that form and the one of 6.x are read.
`eyas.json` beside them keeps what the layout has no place for: the template behind the prompts.
"""

import importlib.util
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from huggingface_hub import snapshot_download

from embedding.config import parse_config
from embedding.files import expanded, read_json, write_json
from embedding.hub import HUB_ERRORS
from embedding.instruction import BARE, Template
from embedding.pooling import Pooling

PACKAGE = "package:"
WEIGHTS = "*.safetensors"
HUB_FILES = ["*.json", WEIGHTS, "*.txt", "*.model", "*.jinja", "*.py", "README.md"]
"""Code too, which runs only where a recipe says `trust_remote_code`."""
# Pooling's flags in the layout of 2.x to 5.x, and its names in 6.x.
POOLING_FLAGS: dict[str, Pooling] = {
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
}
_INSTRUCTED = re.compile(r"(Instruct: ).+(\n ?Query: ?)")
POOLING_NAMES: dict[str, Pooling] = {"lasttoken": "last", "mean": "mean", "cls": "cls"}


@dataclass(frozen=True)
class DenseSpec:
    """One Dense module: its folder inside the model, widths, bias and activation (a class name of torch.nn)."""

    folder: str
    in_features: int
    out_features: int
    bias: bool
    activation: str


@dataclass(frozen=True)
class Layout:
    """What a model folder says beside its weights. `pooling` None: a plain Hugging Face folder, which does not say."""

    transformer: str = ""
    pooling: Pooling | None = None
    dense: tuple[DenseSpec, ...] = ()
    normalize: bool = True
    max_tokens: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    template: Template = BARE
    lower_case: bool = False
    """Whether sentence-transformers lower-cases a text before the tokenizer sees it."""


def resolve_model(name: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """The local folder of a model: a folder, `package:NAME/FOLDER` inside an installed Python package, or a hub id, of
    which all files are fetched, or all but the `weights`.

    Raises:
        ValueError: there is no such folder or package, the hub does not have it or cannot be reached, or a variable in
            the name is not set.
    """
    if name.startswith(PACKAGE):
        package, _, inner = name.removeprefix(PACKAGE).partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"{name}: the Python package {package!r} is not installed; pip install {package}")
        folder = Path(spec.submodule_search_locations[0]) / inner
        if not folder.is_dir():
            raise ValueError(f"{name}: the package {package!r} has no folder {inner!r}")
        return folder
    folder = Path(expanded(name))
    if folder.is_dir():
        return folder
    if folder.exists() or folder.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise ValueError(f"{name}: expected a model folder; it does not exist or is a file")
    try:
        left_out = None if weights else [WEIGHTS]
        return Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=left_out))
    except HUB_ERRORS as error:
        raise ValueError(
            f"{name}: no such folder here, and the hub did not give it ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); give a folder or a hub id such as microsoft/harrier-oss-v1-0.6b"
        ) from None


def require_weights(folder: Path) -> None:
    """Refuse a folder without safetensors weights.

    Raises:
        ValueError: there are none; says so where there are pickled ones, which are never loaded.
    """
    if any(folder.glob("*.safetensors")):
        return
    if any(folder.glob("*.bin")):
        raise ValueError(f"{folder}: has pickled weights only (*.bin), which can run code; convert them to safetensors")
    raise ValueError(
        f"{folder}: a model folder without weights; expected model.safetensors (pickled weights, *.bin, are not "
        "downloaded from the hub: name a revision that has safetensors, often refs/pr/1, or convert them)"
    )


def read_layout(folder: Path) -> Layout:
    """Read the layout of a model folder; a folder without modules.json is a plain Hugging Face model.

    Raises:
        ValueError: a file is broken, a module is of an unknown kind, or pooling is of a kind eyas does not have.
    """
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise ValueError(f"{folder}: not a model folder; expected config.json or modules.json in it")
    prompts = _optional(folder / "config_sentence_transformers.json").get("prompts") or {}
    template = _template(folder, prompts)
    if not (folder / "modules.json").is_file():
        return Layout(prompts=prompts, template=template)
    transformer, pooling, normalize, dense, max_tokens, lower = "", None, False, [], None, False
    for module in read_json(folder / "modules.json"):
        kind, path = str(module["type"]).rsplit(".", 1)[-1], str(module["path"])
        config = _optional(folder / path / "config.json")
        if kind == "Transformer":
            transformer = path
            settings = _optional(folder / path / "sentence_bert_config.json")
            max_tokens, lower = settings.get("max_seq_length"), bool(settings.get("do_lower_case"))
        elif kind == "Pooling":
            pooling = _pooling(folder / path, config)
        elif kind == "Dense":
            if normalize:
                raise ValueError(
                    f"{folder}/modules.json: a Dense module after Normalize; expected Normalize at the end"
                )
            dense.append(_dense(folder / path, path, config))
        elif kind == "Normalize":
            normalize = True
        else:
            raise ValueError(
                f"{folder}/modules.json: module {module['type']!r} is not supported; "
                "expected Transformer, Pooling, Dense, Normalize"
            )
    return Layout(transformer, pooling, tuple(dense), normalize, max_tokens, prompts, template, lower)


def write_layout(folder: Path, layout: Layout, width: int) -> None:
    """Write everything but weights and tokenizer; `width` is the backbone's, before any Dense module."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *((spec.folder, "Dense") for spec in layout.dense)]
    if layout.normalize:
        kinds.append((f"{len(kinds)}_Normalize", "Normalize"))
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(kinds)
        ],
    )
    flags = {flag: mode == layout.pooling for flag, mode in POOLING_FLAGS.items()}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **flags})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": layout.max_tokens, "do_lower_case": False})
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": layout.prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )
    for spec in layout.dense:
        write_json(
            folder / spec.folder / "config.json",
            {
                "in_features": spec.in_features,
                "out_features": spec.out_features,
                "bias": spec.bias,
                "activation_function": _activation_path(spec.activation),
            },
        )
    write_json(folder / "eyas.json", {"template": layout.template})


def tell_older_readers(folder: Path) -> None:
    """Add the rotary base to config.json under the names that transformers 4 and the servers of its time read.

    transformers 5 writes `rope_parameters` alone; an older reader then silently takes its own default base (10,000
    instead of Qwen3's 1,000,000) and gives other vectors.
    """
    config = read_json(folder / "config.json")
    rope = config.get("rope_parameters") or {}
    nested = any(isinstance(value, dict) for value in rope.values())
    main = rope.get("full_attention", {}) if nested else rope
    if "rope_theta" not in main:
        return
    config["rope_theta"] = main["rope_theta"]
    if nested and "rope_theta" in rope.get("sliding_attention", {}):
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]  # Gemma3's name
    if main.get("rope_type", "default") != "default":
        config["rope_scaling"] = {name: value for name, value in main.items() if name != "rope_theta"}
    if config.get("model_type") == "modernbert":
        _tell_of_modernbert(config, rope)
    write_json(folder / "config.json", config)


def _tell_of_modernbert(config: dict[str, Any], rope: dict[str, Any]) -> None:
    """Which layers attend to everything: transformers 4 has no list of them, but every how many; where none fits, as
    for some pruned ones, it cannot be told."""
    whole = [kind == "full_attention" for kind in config["layer_types"]]
    every = [n for n in range(1, len(whole) + 1) if whole == [i % n == 0 for i in range(len(whole))]]
    if every:
        config["global_attn_every_n_layers"] = every[0]
    config["global_rope_theta"] = rope["full_attention"]["rope_theta"]
    config["local_rope_theta"] = rope["sliding_attention"]["rope_theta"]


def _template(folder: Path, prompts: dict[str, str]) -> Template:
    kept = _optional(folder / "eyas.json").get("template")
    if kept is not None:
        return parse_config(Template, kept, where=str(folder / "eyas.json"))
    query = prompts.get("query")
    if query is None:  # a name for each task, as Harrier has: their common form takes any instruction
        forms = [form for prompt in prompts.values() if (form := _INSTRUCTED.fullmatch(prompt))]
        query = f"{forms[0][1]}{{task}}{forms[0][2]}" if forms else ""
    return Template(query=query, document=prompts.get("document", prompts.get("passage", "")))


def _pooling(folder: Path, config: dict[str, Any]) -> Pooling:
    if config.get("include_prompt") is False:
        raise ValueError(f"{folder}: pooling that leaves the prompt out (include_prompt: false) is not supported")
    named = config.get("pooling_mode")
    if named is not None:
        modes = [POOLING_NAMES[named]] if named in POOLING_NAMES else []
    else:
        on = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        modes = [POOLING_FLAGS[key] for key in on if key in POOLING_FLAGS] if set(on) <= set(POOLING_FLAGS) else []
    if len(modes) != 1:
        raise ValueError(f"{folder}/config.json: expected exactly one pooling of {', '.join(get_args(Pooling))}")
    return modes[0]


def _dense(folder: Path, path: str, config: dict[str, Any]) -> DenseSpec:
    if config.get("use_residual") or config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise ValueError(f"{folder}: a Dense module with a residual or on token states is not supported")
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rsplit(".", 1)[-1]
    return DenseSpec(path, config["in_features"], config["out_features"], config.get("bias", True), activation)


def _activation_path(name: str) -> str:
    return f"torch.nn.modules.{'linear' if name == 'Identity' else 'activation'}.{name}"


def _optional(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {json.dumps(value)[:60]}")
    return value
