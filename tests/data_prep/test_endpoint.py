"""Against real HTTP on the loopback: a server that answers well, badly, late, or not at all."""

import json
import threading
import time
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from data_prep import server as room
from data_prep import units
from data_prep.embed import embed_texts
from data_prep.endpoint import Endpoint, EndpointConfig, TextsRefused
from data_prep.tables import Texts
from data_prep.teacher import vector_keys
from data_prep.units import Share
from data_prep.vectors import VectorStore
from embedding.instruction import BARE, Template
from embedding.tokens import PROBE
from tests.data_prep.server import Answer, Server, answer, expected, good, serving, vector_of
from tests.data_prep.test_embed import PAIRS, make_texts

KEY = "sk-do-not-tell-4711"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def _quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def config(server: Server, **settings: Any) -> EndpointConfig:
    return EndpointConfig(
        **{"kind": "endpoint", "url": server.url, "model": "m", "patience_seconds": 1, "timeout_seconds": 5} | settings
    )


def encode(endpoint: Endpoint, texts: list[str]) -> np.ndarray:
    return endpoint.encode_ids(endpoint.tokenize(texts, [""] * len(texts)))


def test_vectors_are_the_servers_in_the_order_asked_and_of_unit_length(server: Server) -> None:
    texts = [f"text {i} ünïcode 漢字" * (i % 7) + str(i) for i in range(200)]
    for encoding in ("float", "base64"):
        endpoint = Endpoint(config(server, encoding=encoding, batch_texts=16, concurrency=4))
        vectors = encode(endpoint, texts)
        np.testing.assert_allclose(vectors, expected(texts), atol=1e-6)
        assert vectors.dtype == np.float32
        assert endpoint.width == vectors.shape[1]
        assert endpoint.used_tokens == sum(len(text.split()) for text in [*texts, PROBE])
    assert encode(endpoint, []).shape == (0, endpoint.width)
    sent = [text for body in server.bodies for text in body["input"]]
    assert sorted(sent) == sorted(2 * [*texts, PROBE])
    assert max(len(body["input"]) for body in server.bodies) == 16


def test_requests_run_side_by_side_up_to_the_concurrency(server: Server) -> None:
    def slow(server: Server, body: dict[str, Any]) -> None:
        time.sleep(0.1)

    server.behave = slow
    endpoint = Endpoint(config(server, batch_texts=1, concurrency=3))
    begun = time.monotonic()
    encode(endpoint, [f"text {i}" for i in range(12)])
    assert server.most_at_once == 3
    assert time.monotonic() - begun < 1.1  # twelve in turn take 1.2


def test_a_batch_holds_no_more_bytes_than_it_may_and_a_longer_text_goes_alone(server: Server) -> None:
    endpoint = Endpoint(config(server, batch_bytes=100))
    texts = ["a" * 60, "b" * 60, "c" * 30, "d" * 30, "e" * 500, "f"]
    np.testing.assert_allclose(encode(endpoint, texts), expected(texts), atol=1e-6)
    batches = sorted(body["input"] for body in server.bodies[1:])
    assert batches == [["a" * 60], ["b" * 60, "c" * 30], ["d" * 30], ["e" * 500], ["f"]]


def test_a_rate_is_kept(server: Server) -> None:
    endpoint = Endpoint(config(server, batch_texts=1, concurrency=4, requests_per_minute=600))
    encode(endpoint, [f"text {i}" for i in range(6)])
    # Five pauses of 0.1 s; a single one may look shorter where the server's threads wait for a processor.
    assert np.ptp(server.times) > 0.4


def test_a_cut_in_bytes_ends_before_a_character_not_in_it(server: Server) -> None:
    endpoint = Endpoint(config(server, max_bytes=17))
    encode(endpoint, ["abcdefghijklmn漢字", "short"])
    assert server.bodies[-1]["input"] == ["abcdefghijklmn漢", "short"]


def test_what_a_request_says(server: Server) -> None:
    settings = {"dimensions": 12, "parameters": {"truncate_prompt_tokens": 512}}
    endpoint = Endpoint(config(server, template=Template(query="query: ", document=""), **settings))
    endpoint.encode_ids(endpoint.tokenize(["x"], ["query: "]))
    said = {"model": "m", "input": ["query: x"], "encoding_format": "float", "dimensions": 12}
    assert server.bodies[-1] == said | {"truncate_prompt_tokens": 512}
    assert "authorization" not in {name.lower() for name in server.headers[-1]}


@pytest.mark.parametrize("status", [429, 500, 503, 0])
def test_what_passes_is_tried_again_with_growing_pauses(
    server: Server, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    wait = threading.Event.wait

    def noting(event: threading.Event, timeout: float | None = None) -> bool:
        pauses.extend([] if timeout is None else [timeout])
        return wait(event, timeout)

    monkeypatch.setattr(threading.Event, "wait", noting)
    endpoint = Endpoint(config(server))
    failures = iter([True] * 3)
    server.behave = lambda server, body: answer({"error": "busy"}, status) if next(failures, False) else None
    begun = len(server.times)
    np.testing.assert_allclose(encode(endpoint, ["x"]), expected(["x"]), atol=1e-6)
    # A broken keep-alive connection may be renewed without an answer seen.
    assert len(server.times) - begun >= 4 - (status == 0)
    pauses = [pause for pause in pauses if pause < 1]  # others wait for threads
    if status:
        assert len(pauses) == 3
        assert pauses[0] <= 0.02 < 0.04 <= pauses[2]


def test_the_server_says_how_long_to_wait(server: Server) -> None:
    endpoint = Endpoint(config(server))
    failures = iter([True])
    wait = {"retry-after": "0.4"}
    server.behave = lambda server, body: answer("slow down", 429, wait) if next(failures, False) else None
    begun = time.monotonic()
    encode(endpoint, ["x"])
    assert time.monotonic() - begun >= 0.4


@pytest.mark.parametrize(
    "status, content, message",
    [
        (429, {"error": {"message": "rate limit"}}, r"no vectors within 0\.3 s .*429 Too Many Requests: rate limit"),
        (500, {"error": "out of memory"}, r"no vectors within 0\.3 s .*500 Internal Server Error: out of memory"),
        (401, {"error": {"message": "no key"}}, r"401 Unauthorized: no key; .*SOME_KEY is not set"),
        (404, {"detail": "no such model"}, r"404 Not Found: .*no such model.*; check teacher\.url and teacher\.model"),
        (400, {"error": "bad"}, r"refuses the text 'An eyas is a young hawk\.'.*400 Bad Request: bad"),
        (200, {"answer": 42}, "not the form of OpenAI's embeddings: .*42"),
        (200, {"data": []}, "a wrong answer: 0 vectors for 1 texts"),
        (200, {"data": [{"index": 0, "embedding": []}]}, "vectors of 0 numbers"),
        (200, {"data": [{"index": 0, "embedding": "%%"}]}, "a vector that is no list of numbers"),
        (200, {"data": [{"index": 0, "embedding": [0.0, 0.0]}]}, "1 of 1 vectors hold NaN or are zero"),
        (200, {"data": [{"index": 0, "embedding": [None, 1.0]}]}, "1 of 1 vectors hold NaN or are zero"),
    ],
)
def test_bad_answers_are_one_clear_message(server: Server, status: int, content: Any, message: str) -> None:
    server.behave = lambda server, body: answer(content, status)
    with pytest.raises(ValueError, match=message):
        Endpoint(config(server, patience_seconds=0.3, key_env="SOME_KEY"))


def test_html_instead_of_json(server: Server) -> None:
    server.behave = lambda server, body: (200, {}, b"<html>a proxy's page</html>")
    with pytest.raises(ValueError, match="not the form of OpenAI's embeddings: <html>a proxy's page"):
        Endpoint(config(server))


def test_a_server_that_never_answers(server: Server) -> None:
    over = threading.Event()

    def silent(server: Server, body: dict[str, Any]) -> None:
        over.wait(10)

    server.behave = silent
    try:
        with pytest.raises(ValueError, match=r"no vectors within 0\.5 s .*no answer within 0\.2 s"):
            Endpoint(config(server, timeout_seconds=0.2, patience_seconds=0.5))
    finally:
        over.set()


def test_no_server(server: Server) -> None:
    with pytest.raises(ValueError, match=r"no vectors within 0\.2 s .*refused"):
        Endpoint(config(server, url="http://127.0.0.1:9/v1", patience_seconds=0.2))
    with pytest.raises(ValidationError, match="expected a URL such as"):
        config(server, url="localhost:8000")


def wrong_later(content: Any) -> Any:
    """Good for the first text, which shows the width; then another answer."""

    def behave(server: Server, body: dict[str, Any]) -> Answer | None:
        return None if body["input"] == [PROBE] else content(good(body))

    return behave


def changed(change: Any) -> Any:
    def content(whole: Answer) -> Answer:
        data = json.loads(whole[2])
        change(data["data"])
        return answer(data)

    return wrong_later(content)


def set_row(rows: list[dict[str, Any]], key: str, value: Any) -> None:
    rows[0][key] = value


@pytest.mark.parametrize(
    "behave, message",
    [
        (changed(lambda rows: rows.pop()), "9 vectors for 10 texts"),
        (changed(lambda rows: set_row(rows, "index", 3)), "9 vectors for 10 texts"),
        (changed(lambda rows: rows[0]["embedding"].pop()), "vectors of 23 and 24 numbers, expected 24"),
        (changed(lambda rows: [row.update(embedding=[1.0] * 8) for row in rows]), "of 8 and 24 numbers, expected 24"),
        (changed(lambda rows: set_row(rows, "embedding", [float("nan")] * 24)), "1 of 10 vectors hold NaN"),
        (changed(lambda rows: set_row(rows, "embedding", [1e300] * 24)), "1 of 10 vectors hold NaN"),
        (wrong_later(lambda whole: (200, {}, whole[2][:100])), "not the form of OpenAI's embeddings"),
    ],
)
def test_wrong_vectors_are_never_taken(server: Server, behave: Any, message: str) -> None:
    server.behave = behave
    endpoint = Endpoint(config(server))
    with pytest.raises(ValueError, match=message):
        encode(endpoint, [f"text {i}" for i in range(10)])


def test_the_texts_that_are_refused_are_found_and_the_others_have_their_vectors(server: Server) -> None:
    def refuse(server: Server, body: dict[str, Any]) -> Answer | None:
        return answer({"error": "too long"}, 413) if any("no!" in text for text in body["input"]) else None

    server.behave = refuse
    endpoint = Endpoint(config(server))
    texts = [f"text {i}" for i in range(40)]
    texts[23] = "no! 23"
    texts[7] = "no! 7"
    with pytest.raises(TextsRefused, match=r"refuses the text 'no! .*too long") as found:
        encode(endpoint, texts)
    assert sorted(found.value.said) == [7, 23]
    assert "'no! 23' (6 characters)" in found.value.said[23]
    others = [i for i in range(40) if i not in (7, 23)]
    np.testing.assert_allclose(found.value.vectors[others], expected([texts[i] for i in others]), atol=1e-6)
    assert np.isnan(found.value.vectors[[7, 23]]).all()
    texts[7] = "yes"
    texts[23] = "yes"
    np.testing.assert_allclose(encode(endpoint, texts), expected(texts), atol=1e-6)


def test_giving_up_ends_the_pauses(server: Server) -> None:
    endpoint = Endpoint(config(server, patience_seconds=60))
    server.behave = lambda server, body: answer("later", 503, {"retry-after": "30"})
    failed: list[str] = []

    def ask() -> None:
        try:
            encode(endpoint, ["x"])
        except ValueError as error:
            failed.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    while len(server.bodies) < 2:
        time.sleep(0.01)
    time.sleep(0.1)
    endpoint.close()
    thread.join(5)
    assert not thread.is_alive()
    assert "given up" in failed[0]


# ------------------------------------------------------------------------------------------------------------- the pass


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    return make_texts(tmp_path_factory.mktemp("data"), PAIRS)


def test_a_pass_over_an_endpoint_keeps_what_is_finished(
    server: Server, texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.embed.SHARD_TEXTS", 8)
    settings = config(server, batch_texts=4)
    served = 0

    def dies(server: Server, body: dict[str, Any]) -> Answer | None:
        nonlocal served
        served += len(body["input"])
        return answer("gone", 401) if served > 40 else None

    server.behave = dies
    with pytest.raises(ValueError, match="401"):
        embed_texts(settings, texts, tmp_path, progress=False)
    server.behave = lambda server, body: None
    report = embed_texts(settings, texts, tmp_path, progress=False)
    assert report.reused >= 8
    assert report.reused + report.computed == len(texts)
    store = VectorStore.open(report.store, report.identity, report.width)
    found = store.rows(vector_keys(texts, settings.template))
    np.testing.assert_allclose(found, expected(texts.texts.to_pylist()), atol=1e-3)
    assert len(store) == len(texts) + 1  # and the text that shows whether the model is still the same


def test_a_refused_text_stops_nothing_and_is_named_by_its_row(server: Server, texts: Texts, tmp_path: Path) -> None:
    row = 5
    refused = texts.text(row)
    server.behave = lambda server, body: answer("no", 422) if refused in body["input"] else None
    for _ in range(2):  # the second pass asks for nothing else
        asked = len(server.bodies)
        with pytest.raises(ValueError, match=rf"1 of {len(texts)} texts were refused .*text {row}: .*refuses the text"):
            embed_texts(config(server), texts, tmp_path, progress=False)
    assert sorted({text for body in server.bodies[asked:] for text in body["input"]}) == sorted({PROBE, refused})
    store = VectorStore.existing(next(tmp_path.glob("*/manifest.json")).parent)
    keys = vector_keys(texts, BARE)
    assert np.flatnonzero(store.missing(keys)).tolist() == [row]
    server.behave = lambda server, body: None  # its limit was raised
    report = embed_texts(config(server), texts, tmp_path, progress=False)
    assert report.computed == 1
    assert not list((store.folder / "refused").iterdir())


def test_two_processes_end_where_a_text_is_refused(
    server: Server, texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "POLL_SECONDS", 0.05)
    refused = {texts.text(row) for row in (3, 20)}
    server.behave = lambda server, body: answer("no", 400) if refused & set(body["input"]) else None

    def work(rank: int) -> str:
        with pytest.raises(ValueError, match="texts were refused") as found:
            embed_texts(config(server), texts, tmp_path, progress=False, share=Share(rank, 2))
        return str(found.value)

    with ThreadPool(2) as pool:
        said = pool.map(work, range(2))
    assert all(f"2 of {len(texts)} texts" in one for one in said)


def test_a_server_that_refuses_everything_is_not_asked_for_ever(
    server: Server, texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.embed.MOST_REFUSED", 10)
    server.behave = lambda server, body: None if body["input"] == [PROBE] else answer("quota", 400)
    with pytest.raises(ValueError, match=r"more than 10 texts were refused, the last: .*quota"):
        embed_texts(config(server), texts, tmp_path, progress=False)


def test_a_model_that_changed_behind_its_name_is_noticed(server: Server, texts: Texts, tmp_path: Path) -> None:
    embed_texts(config(server), texts, tmp_path, progress=False)

    def another(server: Server, body: dict[str, Any]) -> Answer:
        rows = [{"index": i, "embedding": vector_of("v2" + text).tolist()} for i, text in enumerate(body["input"])]
        return answer({"data": rows})

    server.behave = another
    with pytest.raises(ValueError, match=r"no longer gives the vectors stored here .*set teacher\.revision"):
        embed_texts(config(server), texts, tmp_path, progress=False)
    report = embed_texts(config(server, revision="v2"), texts, tmp_path, progress=False)
    assert report.computed == len(texts)
    assert 'revision: expected "v2", found null' in report.note


@pytest.mark.parametrize("status", [200, 401, 403, 404, 429, 500])
def test_the_key_is_sent_and_told_to_nobody(
    server: Server,
    texts: Texts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    status: int,
) -> None:
    monkeypatch.setenv("SOME_KEY", f"{KEY}\r\n")  # as a secret comes out of many a file
    settings = config(server, key_env="SOME_KEY", patience_seconds=0.2)
    said = ""
    if status != 200:
        server.behave = lambda server, body: answer({"error": f"what is {KEY}?"}, status)
        with pytest.raises(ValueError, match=r"what is \*\*\*\?") as found:
            embed_texts(settings, texts, tmp_path, progress=False)
        said = "".join(map(str, (found.value, found.value.__cause__, found.value.__context__)))
    else:
        report = embed_texts(settings, texts, tmp_path)
        said = repr(report)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    said += "".join(capfd.readouterr()) + repr(settings)
    said += "".join(path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in said
