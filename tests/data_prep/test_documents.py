"""Pairs that documents hold: headings, titles, sentences and docstrings, of small files and of real source code."""

import inspect
import statistics
from pathlib import Path

import pytest

from data_prep.build import DataConfig, prepare
from data_prep.documents import FEWEST_WORDS, PASSAGE_WORDS, pairs_of, passages, read_document, sentences
from data_prep.tables import Examples
from embedding.config import parse_config

MARKDOWN = """---
title: not text
---
# Falcons

Falcons are birds of prey in the genus *Falco*. They live on every continent except Antarctica. Adults have thin wings.

## Training

A young hawk in training is called an eyas. It is taken from the nest before it can fly. It learns from its `falconer`.

### Lures

The lure is a leather pad with feathers. It is swung on a cord by the falconer. The bird stoops at it from far above.
"""
HTML = """<html><head><title>On owls</title><style>p {color: red}</style></head><body><nav>Home Login Search menu</nav>
<h1>Owls</h1><p>Owls are solitary and nocturnal birds of prey. They are known for an upright stance.</p>
<h2>Hearing</h2><p>Their ears stand at different heights. That tells them where a sound comes from, up or down.</p>
<script>var x = "not text at all";</script></body></html>"""


def found(name: str, text: str, *kinds: str) -> dict[str, str]:
    return {pair.query: pair.positive for pair in pairs_of(Path(name), text, kinds)}  # type: ignore[arg-type]


def test_headings_ask_for_their_sections() -> None:
    pairs = found("falcons.md", MARKDOWN, "heading")
    assert list(pairs) == ["Training", "Training › Lures"]
    assert pairs["Training"].startswith("A young hawk in training is called an eyas.")
    assert pairs["Training"].endswith("It learns from its falconer.")
    assert "lure" not in pairs["Training"]


def test_a_title_asks_for_the_beginning() -> None:
    assert found("falcons.md", MARKDOWN, "title")["Falcons"].startswith("Falcons are birds of prey in the genus Falco.")
    assert found("owls.html", HTML, "title")["On owls"].startswith("Owls are solitary")
    plain = "A note on hawks\n\n" + "The hawk sits on the glove and waits. " * 3
    assert found("note.txt", plain, "title") == {
        "A note on hawks": ("The hawk sits on the glove and waits. " * 3).strip()
    }


def test_html_is_read_without_its_furniture() -> None:
    pairs = found("owls.html", HTML, "heading", "title", "context")
    assert "Hearing" in pairs
    assert not any(word in text for text in pairs.values() for word in ("color", "Login", "var x"))


def test_a_sentence_asks_for_its_context() -> None:
    pairs = found("falcons.md", MARKDOWN, "context")
    assert len(pairs) == 3
    for query, context in pairs.items():
        assert sentences(query) == [query]
        assert len(sentences(context)) in (2, 3)
    removed = [query for query, context in pairs.items() if query not in context]
    assert len(removed) >= 2
    assert pairs == found("falcons.md", MARKDOWN, "context"), "the choice is the text's own"


def test_docstrings_ask_for_code_without_them() -> None:
    source = inspect.getsource(statistics)
    pairs = found("statistics.py", source, "docstring")
    assert len(pairs) > 20
    code = pairs["Return the sample arithmetic mean of data."]
    assert code.startswith("def mean(data):")
    assert "arithmetic mean of data" not in code
    assert found("statistics.py", source, "heading", "title", "context") == {}


def test_passages_are_whole_sentences_of_bounded_length() -> None:
    text = " ".join(f"Sentence number {i} has some eight words in it." for i in range(200))
    cut = list(passages(text))
    assert " ".join(cut) == text
    assert all(len(passage.split()) <= PASSAGE_WORDS and passage.endswith(".") for passage in cut)
    assert len(list(passages("word " * 1_000))) == 1


CHINESE = "正在接受训练的幼鹰在英语中被称为小鹰。它在学会飞行之前就被人们从巢中取出。它从驯鹰人那里学会一切。"
JAPANESE = "訓練中の若い鷹は英語でアイアスと呼ばれる。飛べるようになる前に巣から取り出される。鷹匠からすべてを学ぶ。"
THAI = "เหยี่ยวหนุ่มที่อยู่ระหว่างการฝึกถูกนำออกมาจากรังก่อนที่มันจะบินได้"


@pytest.mark.parametrize("text", [CHINESE, JAPANESE])
def test_sentences_without_spaces_make_pairs(text: str) -> None:
    markdown = f"# 鷹\n\n## 訓練\n\n{text}\n"
    assert found("a.md", markdown, "heading", "title") == {"訓練": text, "鷹": text}
    ((query, context),) = found("a.md", markdown, "context").items()
    assert query in sentences(text)
    assert context in (text, text.replace(query, "")), "no space where there was none"
    assert found("a.txt", f"{text}\n\n{text}", "title") == {}, "a sentence is no title"
    assert found("a.txt", f"訓練中の若い鷹\n\n{text}", "title") == {"訓練中の若い鷹": text}


def test_passages_without_spaces_are_of_bounded_length() -> None:
    text = "".join(f"第{i}句话说的是岛上的灯塔和船。" for i in range(300))
    cut = list(passages(text))
    assert "".join(cut) == text
    assert max(map(len, cut)) < 3 * PASSAGE_WORDS
    assert len(cut) < 20
    assert list(passages(THAI)) == [THAI]
    assert sentences(f"{THAI} {THAI} (2026)") == [THAI, f"{THAI} (2026)"], "Thai ends sentences with a space"
    thai = list(passages(" ".join([THAI] * 60)))
    assert " ".join(thai) == " ".join([THAI] * 60)
    assert max(map(len, thai)) < 3 * PASSAGE_WORDS
    assert sentences("မောင်မောင်။ စာဖတ်သည်။") == ["မောင်မောင်။", "စာဖတ်သည်။"]
    korean = "훈련 중인 어린 매는 영어로 아이어스라고 불린다. 날 수 있기 전에 둥지에서 꺼내진다."
    assert list(passages(korean)) == [korean], "Korean has spaces"
    assert list(passages("訓練は短い。")) == []


def test_all_text_of_an_html_page_is_read_wherever_it_stands() -> None:
    page = """<!DOCTYPE html><body><!-- nothing to read --><h1>Leave</h1><div>Take <b>days</b> off.<ul><li>Ask first.
    <ul><li>By letter.</li></ul>Then wait.</li></ul>And come back.</div><pre>leave --days 3</pre>
    <table><tr><th>Who</th><td>You</td></tr></table></body>"""
    document = read_document(Path("leave.html"), page)
    assert document.title == "Leave"
    (section,) = document.sections
    text = "Take days off. Ask first. By letter. Then wait. And come back. leave --days 3 Who You"
    assert section.text == text
    bare = read_document(Path("bare.html"), "Two words<br>and more<h2>Then</h2>the rest")
    assert [(section.path, section.text) for section in bare.sections] == [((), "Two words and more"), ((), "the rest")]


@pytest.mark.parametrize("name", ["a.md", "a.html", "a.txt", "a.py"])
@pytest.mark.parametrize("text", ["", " \n\n ", "word", "# only a heading", "<p>", "\x00"])
def test_documents_without_text_have_no_pairs(name: str, text: str) -> None:
    if name == "a.py" and text in ("\x00", "<p>"):
        with pytest.raises((SyntaxError, ValueError)):
            found(name, text, "docstring")
    else:
        assert found(name, text, "heading", "title", "context", "docstring") == {}


def test_short_sections_make_no_pair() -> None:
    assert found("a.md", "# T\n\n## Heading\n\nToo short.\n", "heading", "context") == {}
    assert FEWEST_WORDS > 2
    assert read_document(Path("a.md"), "# T\n\n## Heading\n\nToo short.\n").sections[0].path == ("Heading",)


# ---------------------------------------------------------------------------------------------------------- as a source


def test_a_folder_of_documents_becomes_tables(tmp_path: Path) -> None:
    docs = tmp_path / "my docs"
    docs.mkdir()
    (docs / "falcons.md").write_text(MARKDOWN)
    (docs / "owls.html").write_text(HTML)
    (docs / "statistics.py").write_text(inspect.getsource(statistics))
    (docs / "broken.py").write_text("def f(:")
    (docs / "latin.txt").write_bytes("Füchse".encode("latin-1"))
    (docs / "empty.md").write_text("")
    (docs / "picture.png").write_bytes(b"\x89PNG")
    (docs / "no_parser_reads_this.html").write_text("<![draft[")
    config = parse_config(DataConfig, {"sources": [{"kind": "documents", "path": str(docs)}], "heldout": {"share": 0}})
    summary = prepare(config, tmp_path / "out", progress=False)
    facts = summary["sources"]["my docs"]
    assert facts["rows"] == facts["examples"] + 5
    assert facts["dropped"]["not UTF-8"] == facts["dropped"]["source code that does not parse"] == 1
    assert facts["dropped"]["no pair in the document"] == 1
    assert facts["dropped"]["a file of a kind that is not read"] == facts["dropped"]["text that cannot be read"] == 1
    assert facts["places"]["not UTF-8"] == [str(docs / "latin.txt")]
    examples = Examples.load(tmp_path / "out" / "examples")
    assert len(set(examples.groups.tolist())) == 3, "a group for each document"


def test_a_folder_without_documents_is_refused(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    config = parse_config(DataConfig, {"sources": [{"kind": "documents", "path": str(tmp_path), "name": "docs"}]})
    with pytest.raises(ValueError, match="1 files, and none that ends in"):
        prepare(config, tmp_path / "out", progress=False)
