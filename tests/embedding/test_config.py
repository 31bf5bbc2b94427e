from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from embedding.config import Config, Place, dump_config, load_config, read_yaml, suggest


class Square(Config):
    kind: Literal["square"] = "square"
    side: float = 1.0


class Circle(Config):
    kind: Literal["circle"] = "circle"
    radius: float = 1.0


class Picture(Config):
    title: str
    path: Place = Path("here")
    shapes: list[Annotated[Square | Circle, Field(discriminator="kind")]] = Field(default=[])
    frame: Square = Square()
    edge: Annotated[Square | Circle, Field(discriminator="kind")] = Square()


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_files_extend_files_and_overrides_win(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "title: base\nframe: {side: 3}\nshapes: [{kind: circle, radius: 2}]\n")
    path = write(tmp_path, "mine.yaml", "extends: base.yaml\ntitle: mine\n")
    picture = load_config(Picture, path, ["shapes.0.radius=5", "path=there"])
    assert picture == Picture(title="mine", path=Path("there"), shapes=[Circle(radius=5.0)], frame=Square(side=3.0))
    again = write(tmp_path, "again.yaml", dump_config(picture))
    assert load_config(Picture, again) == picture


def test_of_several_extended_files_the_later_wins(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "title: base\nframe: {side: 3}\nedge: {kind: circle, radius: 2}\n")
    write(tmp_path, "more.yaml", "title: more\nshapes: [{kind: circle}]\n")
    path = write(tmp_path, "mine.yaml", "extends: [base.yaml, more.yaml]\nframe: {side: 4}\n")
    frame, edge = Square(side=4.0), Circle(radius=2.0)
    assert load_config(Picture, path) == Picture(title="more", shapes=[Circle()], frame=frame, edge=edge)


def test_keys_with_dots_name_places_in_a_file_as_on_the_command_line(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "title: base\nframe.side: 3\nshapes: [{kind: circle, radius: 2}, {kind: square}]\n")
    text = "shapes.0.radius: 5\nextends: base.yaml\nedge.radius: 4\nedge.kind: circle\nshapes.1: {kind: circle}\n"
    picture = load_config(Picture, write(tmp_path, "mine.yaml", text), ["frame.side=7"])
    shapes = [Circle(radius=5.0), Circle()]
    assert picture == Picture(title="base", shapes=shapes, frame=Square(side=7.0), edge=Circle(radius=4.0))
    far = write(tmp_path, "far.yaml", "extends: base.yaml\nshapes.2.side: 1\n")
    with pytest.raises(ValueError, match=r"far.yaml: 'shapes.2.side': '2' is not a position in a list of 2"):
        load_config(Picture, far)
    near = write(tmp_path, "near.yaml", "extends: base.yaml\nframe.syde: 1\n")
    with pytest.raises(ValueError, match=r"unknown key 'frame.syde'; did you mean 'side'"):
        load_config(Picture, near)


@pytest.mark.parametrize(
    "text, message",
    [
        ("titel: x", r"title: is required and missing; unknown key 'titel'; did you mean 'title'\?"),
        ("title: x\nframe: {syde: 1}", r"unknown key 'frame\.syde'; did you mean 'side'\?"),
        ("title: x\nshapes: [{kind: circle, raduis: 1}]", r"unknown key .*raduis'; did you mean 'radius'\?"),
        ("title: x\nframe: {side: wide}", r"frame\.side: input should be a valid number, got 'wide'"),
        ("title: [x", r"not valid YAML"),
        ("- x", r"expected a mapping of keys to values, found list"),
        ("title: x\nextends: missing.yaml", r"missing\.yaml: no such config file"),
        ("title: x\nextends: bad.yaml", r"`extends:` runs in a circle"),
        ("title: x\nextends: [base, bad.yaml]", r"`extends:` runs in a circle"),
        ("title: x\nextends: [base, missing.yaml]", r"missing\.yaml: no such config file"),
    ],
)
def test_mistakes_are_named_with_the_fix(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(Picture, write(tmp_path, "bad.yaml", text))


@pytest.mark.parametrize(
    "override, message",
    [
        ("title", r"override 'title': expected key=value"),
        ("shapes.3.side=1", r"'3' is not a position in a list of 0"),
        ("titles=1", r"unknown key 'titles'; did you mean 'title'\?"),
    ],
)
def test_overrides_are_checked(tmp_path: Path, override: str, message: str) -> None:
    path = write(tmp_path, "a.yaml", "title: x\nshapes: []\n")
    with pytest.raises(ValueError, match=message):
        load_config(Picture, path, [override])


def test_another_kind_replaces_the_whole_mapping(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "title: base\nedge: {kind: square, side: 3}\n")
    path = write(tmp_path, "mine.yaml", "extends: base.yaml\nedge: {kind: circle, radius: 2}\n")
    assert load_config(Picture, path).edge == Circle(radius=2.0)
    same = write(tmp_path, "same.yaml", "extends: base.yaml\nedge: {kind: square}\n")
    assert load_config(Picture, same).edge == Square(side=3.0)
    overrides = ["edge.radius=4", "edge.kind=circle"]
    assert load_config(Picture, tmp_path / "base.yaml", overrides).edge == Circle(radius=4.0)


def test_a_place_is_written_as_in_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("SCRATCH", "/big")
    path = write(tmp_path, "a.yaml", "title: $SCRATCH\npath: $SCRATCH/runs\n")
    assert load_config(Picture, path) == Picture(title="$SCRATCH", path=Path("/big/runs"))
    for given, found in {"~/runs": "/home/ann/runs", "${SCRATCH}1": "/big1", "a$$b": "a$b", "runs": "runs"}.items():
        assert load_config(Picture, path, [f"path={given}"]).path == Path(found)
    monkeypatch.delenv("SCRATCH")
    with pytest.raises(ValueError, match=r"path: the environment variable SCRATCH is not set; export it, got '\$SCR"):
        load_config(Picture, path)
    with pytest.raises(ValueError, match=r"path: a `\$` that begins no variable name"):
        load_config(Picture, path, ["path=5$"])


def test_floats_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "title: x\nframe: {side: 1e-3}\nedge: {kind: square, side: .5e+2}\n")
    assert load_config(Picture, path).frame.side == 1e-3
    commit = write(tmp_path, "b.yaml", "title: 07e2b629250bf4185f4c87f640fac15949b8aa73\nframe: {side: 1.0}\n")
    assert load_config(Picture, commit).title.startswith("07e2b6"), "a commit may begin like a number"
    assert load_config(Picture, path).edge == Square(side=50.0)
    assert load_config(Picture, path, ["frame.side=2E6"]).frame.side == 2e6
    named = load_config(Picture, path, ["title='1e3'"])
    assert named.title == "1e3"
    assert load_config(Picture, write(tmp_path, "b.yaml", dump_config(named))) == named
    with pytest.raises(ValueError, match=r"override 'title=\[': not valid YAML"):
        load_config(Picture, path, ["title=["])


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "mine.yaml", "title: x\n")
    with pytest.raises(ValueError, match=r"mine\.yml: no such config file; did you mean '.*mine\.yaml'"):
        load_config(Picture, tmp_path / "mine.yml")


def test_a_commit_that_begins_like_a_number_is_text() -> None:
    assert read_yaml("69e8f12da6e3", "here") == "69e8f12da6e3"
    assert read_yaml("1e-3", "here") == 1e-3


def test_a_message_does_not_list_thousands_of_names() -> None:
    said = suggest("nonsense", [f"Task{n:04}" for n in range(2_000)])
    assert said.startswith("; valid: Task0000, Task0001,")
    assert said.endswith(" and 1,960 more")
    assert suggest("nonsense", ["b", "a"]) == "; valid: a, b"


def test_booleans_are_those_of_yaml_1_2() -> None:
    """By YAML 1.1 the parts of a text that a loss is `on`, and Norwegian, are booleans."""
    text = "{on: [query], languages: [no, en], yes: y, sure: true, never: False}"
    found = {"on": ["query"], "languages": ["no", "en"], "yes": "y", "sure": True, "never": False}
    assert read_yaml(text, "here") == found
