"""The base of every configuration: strict types, unknown keys refused, YAML with ``extends:``, dotted overrides."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from embedding.files import expanded

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

# Floats as YAML 1.2 has them (yaml.org/spec/1.2.2, 10.3.2): PyYAML follows 1.1, which reads 1e-3 as text.
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+\Z")


_BOOL, _BOOL_TAG = re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"), "tag:yaml.org,2002:bool"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with the floats and the booleans of YAML 1.2: in 1.1 the key `on` and the language `no` are
    booleans too."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would take for a float."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != _BOOL_TAG]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_implicit_resolver(_BOOL_TAG, _BOOL, list("tTfF"))


class Config(BaseModel):
    """A frozen pydantic model that refuses unknown keys and does not convert types silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


Place = Annotated[Path, BeforeValidator(lambda value: expanded(value) if isinstance(value, str) else value)]
"""A file or folder of a config; `~` and `$VARIABLE` are filled in as it is read."""


C = TypeVar("C", bound=Config)


def load_config(cls: type[C], path: Path | str, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file into `cls`.

    `extends: other.yaml` (relative to the file, else to the configs shipped with eyas), or a list of them, the later
    over the earlier, is read first and merged: mappings deeply, everything else replaced; a mapping of another `kind`
    too. Then the file's own keys with dots, ``a.b.0.c: value``, and each override ``a.b.0.c=value``, whose value is
    YAML, are put in their places. One that changes a `kind` comes first and drops what belonged to the old kind.

    Raises:
        ValueError: the file is missing or no YAML mapping, `extends:` runs in a circle, an override has no `=`, a key
            with dots names no place, or a value does not fit `cls`; the message names the key, what was expected and
            close keys.
    """
    path = find_config(path)
    return override_config(cls, _read_yaml(path, ()), overrides, where=str(path))


def override_config(cls: type[C], values: dict[str, Any], overrides: Sequence[str], where: str) -> C:
    """Plain values with dotted overrides, validated into `cls`; see `load_config`."""
    given = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise ValueError(f"override {override!r}: expected key=value, for example stages.0.learning_rate=1e-4")
        given[path] = read_yaml(text, f"override {override!r}")
    _put_all(values, given, "override ")
    return parse_config(cls, values, where)


def parse_config(cls: type[C], values: dict[str, Any], where: str = "config") -> C:
    """Validate plain values (as YAML gives them) into `cls`; `where` begins the message of the ValueError."""
    try:
        return cls.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        lines = [_explain(cls, detail) for detail in error.errors()]
        raise ValueError(f"{where}: " + "; ".join(dict.fromkeys(lines))) from None


def dump_config(config: Config) -> str:
    """The YAML text of a config, defaults included, that `load_config` reads back to an equal config."""
    return str(yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def find_config(path: Path | str) -> Path:
    """The file itself, or the file of that name among the configs shipped with eyas (`.yaml` may be left out).

    Raises:
        ValueError: neither exists; names the shipped configs that are close.
    """
    path = Path(path)
    for candidate in (path, CONFIGS / path, CONFIGS / f"{path}.yaml"):
        if candidate.is_file():
            return candidate
    shipped = [str(p.relative_to(CONFIGS).with_suffix("")) for p in CONFIGS.rglob("*.yaml")]
    beside = [str(p) for suffix in ("yaml", "yml") for p in path.parent.glob(f"*.{suffix}")]
    raise ValueError(f"{path}: no such config file{suggest(str(path), [*beside, *shipped])}")


def read_yaml(text: str, where: str) -> Any:
    """The value of a YAML document; `where` begins the message.

    Raises:
        ValueError: it is not valid YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  # it is a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None


LISTED = 40
"""Names that a message lists where none is close to the one given; mteb alone has two thousand tasks."""


def suggest(name: str, valid: Sequence[str]) -> str:
    """The tail of an error message about an unknown `name`: the close valid names, else all of them, or the first."""
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(map(repr, close))}?"
    more = f" and {len(valid) - LISTED:,} more" if len(valid) > LISTED else ""
    return f"; valid: {', '.join(sorted(valid)[:LISTED])}{more}" if valid else ""


def _read_yaml(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ValueError(f"{path}: `extends:` runs in a circle: {' -> '.join(str(p) for p in (*seen, path))}")
    values = read_yaml(path.read_text(encoding="utf-8"), str(path))
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of keys to values, found {type(values).__name__}")
    dotted = {key: values.pop(key) for key in list(values) if "." in str(key)}
    parents = values.pop("extends", None)
    merged: dict[str, Any] = {}
    for parent in parents if isinstance(parents, list) else [] if parents is None else [parents]:
        beside = path.parent / str(parent)
        base = beside if beside.is_file() else find_config(str(parent))
        merged = _merge(merged, _read_yaml(base, (*seen, path.resolve())))
    merged = _merge(merged, values)
    _put_all(merged, dotted, f"{path}: ")
    return merged


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    if "kind" in base and over.get("kind", base["kind"]) != base["kind"]:
        return over  # what the other kind was made of means nothing here
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _put_all(values: dict[str, Any], dotted: Mapping[str, Any], where: str) -> None:
    """Put each value into the place that its dotted key names; a new `kind` before what belongs to it."""
    for path in sorted(dotted, key=lambda path: not path.endswith(".kind")):
        _put(values, path, dotted[path], f"{where}{path!r}")


def _put(values: dict[str, Any], path: str, value: Any, said: str) -> None:
    *parents, last = path.split(".")
    place: Any = values
    for key in parents:
        if isinstance(place, list):
            place = place[_index(place, key, said)]
        else:
            if not isinstance(place.get(key), dict | list):
                place[key] = {}
            place = place[key]
    if isinstance(place, list):
        place[_index(place, last, said)] = value
    elif last == "kind" and place.get("kind", value) != value:
        place.clear()
        place["kind"] = value
    else:
        place[last] = value


def _index(place: list[Any], key: str, said: str) -> int:
    if not key.isdigit() or int(key) >= len(place):
        raise ValueError(f"{said}: {key!r} is not a position in a list of {len(place)}")
    return int(key)


def _explain(cls: type[Config], detail: Any) -> str:
    """One line for one pydantic error: the dotted key, what was expected, the value."""
    *parents, last = detail["loc"] or ("",)
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"unknown key {key!r}{suggest(str(last), _fields(cls, parents))}"
    if detail["type"] == "missing":
        return f"{key}: is required and missing"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{key}: {message[0].lower()}{message[1:]}, got {detail['input']!r}" if key else message


def _fields(cls: Any, location: Sequence[str | int]) -> list[str]:
    """The field names valid at a place of `cls`; walks unions and lists; a union's tag picks the member."""
    found: list[Any] = [cls]
    for part in location:
        annotations: list[Any] = []
        for model in found:
            fields = getattr(model, "model_fields", {})
            if part in fields:
                annotations.append(fields[part].annotation)
            elif not isinstance(part, int):
                annotations.append(model)  # the tag of a discriminated union stands in the location
        tagged = [m for m in _models(annotations) if part in _tags(m)]
        found = tagged or _models(annotations) or found
    return sorted({name for model in found for name in model.model_fields})


def _models(annotations: Sequence[Any]) -> list[type[Config]]:
    models: list[type[Config]] = []
    for annotation in annotations:
        if isinstance(annotation, type) and issubclass(annotation, Config):
            models.append(annotation)
        models.extend(_models(get_args(annotation)))
    return models


def _tags(model: type[Config]) -> tuple[Any, ...]:
    return tuple(tag for field in model.model_fields.values() for tag in get_args(field.annotation))
