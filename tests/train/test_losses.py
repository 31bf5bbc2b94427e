"""Every loss against a float64 reference in numpy, on any number of ranks, in tiles and whole."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from torch import Tensor

import train.contrast
import train.losses_teacher
import train.views
from benchmarks.processes import run_ranks
from train.distributed import gather_rows, rank, world_size
from train.losses import Loss, loss_part, projected_widths
from train.views import PART_BITS, Ramp, Views

N, D, E, B, H, G = 23, 12, 20, 9, 2, 6
Array = np.ndarray
LOSS: TypeAdapter[Any] = TypeAdapter(Loss)


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def example(seed: int = 0) -> dict[str, Array]:
    """A batch of 23 texts: 9 queries, 12 documents (9 positives, 2 shared; hard negatives), 6 graded pairs."""
    rng = np.random.default_rng(seed)
    part = np.array([1] * 9 + [2] * 7 + [4] * 5 + [1, 2])
    negative = rng.integers(7, 12, size=(B, H))
    negative[::3, 1] = -1
    return {
        "z": unit(rng.normal(size=(N, D))),
        "w": rng.normal(size=(E, D)) / 4,
        "t": unit(rng.normal(size=(N, E)) + 0.3),
        "part": part,
        "query": np.arange(B),
        "document": np.arange(9, 21),
        "positive": np.array([0, 1, 2, 3, 4, 5, 6, 0, 1]),
        "negative": negative,
        "excluded": np.array([(0, 8), (2, 4), (5, 11), (7, 3)]),
        "group": np.array([-1, 1, 1, -1, 2, 2, -1, -1, -1]),
        "document_group": np.array([-1, 1, 1, -1, 2, 2, -1, -1, -1, -1, -1, -1]),
        "graded": rng.permutation(N)[: 2 * G].reshape(G, 2),
        "score": np.array([0.0, 1.0, 1.0, 2.5, 5.0, 3.0]),
    }


def views_of(x: dict[str, Array], at: int = 0, ranks: int = 1) -> tuple[Views, Tensor, Tensor]:
    """The views of one of several ranks that live in this process, with the leaves they are made from."""
    z = torch.tensor(x["z"], dtype=torch.float32, requires_grad=True)
    w = torch.tensor(x["w"], dtype=torch.float32, requires_grad=True)
    t = torch.tensor(x["t"], dtype=torch.float32)
    mine = torch.arange(at, N, ranks)
    return make(x, z, z[mine], w, t, mine, at, ranks), z, w


def make(
    x: dict[str, Array], z: Tensor, local: Tensor, w: Tensor, t: Tensor, mine: Tensor, at: int, ranks: int
) -> Views:
    cut = torch.nn.functional.normalize(local[:, :5], dim=1) @ w[:, :5].T
    table = {name: torch.from_numpy(value) for name, value in x.items()}
    return Views(
        text_ND=z,
        part_N=table["part"],
        query_B=table["query"],
        document_K=table["document"],
        positive_B=table["positive"],
        negative_BH=table["negative"],
        excluded_X2=table["excluded"],
        query_group_B=table["group"],
        document_group_K=table["document_group"],
        graded_G2=table["graded"],
        score_G=table["score"].float(),
        rank=at,
        ranks=ranks,
        seed=7,
        local_nE=local @ w.T,
        local_part_n=table["part"][mine],
        teacher_nE=t[mine],
        teacher_NE=t,
        cuts={5: cut},
    )


# --------------------------------------------------------------------------------------------------------- references


def chosen(x: dict[str, Array], *parts: str) -> Array:
    return np.flatnonzero(x["part"] & sum(PART_BITS[part] for part in parts))  # type: ignore[index]


def usable(x: dict[str, Array]) -> Array:
    same = (x["group"][:, None] == x["document_group"][None]) & (x["group"][:, None] >= 0)
    same[tuple(x["excluded"].T)] = True
    same[np.arange(B), x["positive"]] = False
    return ~same


def nce(x: dict[str, Array], o: dict[str, Any]) -> float:
    q, d = x["z"][x["query"]], x["z"][x["document"]]
    s = q @ d.T
    rows = np.arange(B)
    best = s[rows, x["positive"]]
    use = usable(x)
    if "margin" in o:
        use &= s <= best[:, None] + o["margin"]
    if "teacher_margin" in o:
        ts = x["t"][x["query"]] @ x["t"][x["document"]].T
        use &= ts <= ts[rows, x["positive"]][:, None] + o["teacher_margin"]
    use[rows, x["positive"]] = True
    tau, a = o.get("temperature", 0.05), o.get("hardness", 0.0)
    no_limit = np.full((B, 1), np.inf)
    limit = best[:, None] + o["margin"] if "margin" in o else no_limit
    held = o.get("held", x)["z"]  # the weights are constants to the gradient
    held_q, held_d = held[x["query"]], held[x["document"]]
    weight = np.exp(a * (held_q @ held_d.T))
    weight[rows, x["positive"]] = 1.0
    z = (use * weight * np.exp(s / tau)).sum(1)
    if o.get("same_tower"):
        qq = q @ q.T
        ok = x["query"][:, None] != x["query"][None]
        ok &= x["positive"][:, None] != x["positive"][None]
        ok &= ~((x["group"][:, None] == x["group"][None]) & (x["group"][:, None] >= 0))
        for i, k in x["excluded"]:
            ok[i, x["positive"] == k] = False
        tq, td = x["t"][x["query"]], x["t"][x["document"]]
        t_limit = (tq * td[x["positive"]]).sum(1)[:, None] + o["teacher_margin"] if "teacher_margin" in o else no_limit
        ok &= (qq <= limit) & (tq @ tq.T <= t_limit)
        z = z + (ok * np.exp(a * (held_q @ held_q.T) + qq / tau)).sum(1)
        dd = d[x["positive"]] @ d.T
        ok = np.ones((B, len(d)), dtype=bool)
        ok[tuple(x["excluded"].T)] = False
        ok &= ~((x["group"][:, None] == x["document_group"][None]) & (x["group"][:, None] >= 0))
        ok[rows, x["positive"]] = False
        ok &= (dd <= limit) & (td[x["positive"]] @ td.T <= t_limit)
        z = z + (ok * np.exp(a * (held_d[x["positive"]] @ held_d.T) + dd / tau)).sum(1)
    return float((np.log(z) - best / tau).mean())


def match(x: dict[str, Array], o: dict[str, Any]) -> float:
    at = chosen(x, *o.get("on", ["query", "positive", "negative"]))
    y, t = x["z"][at] @ x["w"].T, x["t"][at]
    if o.get("distance") == "mse":
        return float(((y - t) ** 2).sum(1).mean() / 2)
    return float((1 - (unit(y) * t).sum(1)).mean())


def match_cut(x: dict[str, Array], o: dict[str, Any]) -> float:
    w, whole = 3 if "width_weights" in o else 1, match(x, o)
    return (whole + w * match(x | {"z": unit(x["z"][:, :5]), "w": x["w"][:, :5]}, o)) / (1 + w)


def gram(x: dict[str, Array], o: dict[str, Any]) -> float:
    at = chosen(x, *o.get("on", ["query", "positive", "negative"]))
    z, t = x["z"][at], x["t"][at]
    return float(((z @ z.T - t @ t.T) ** 2).mean())


def relative(x: dict[str, Array], o: dict[str, Any]) -> float:
    at = chosen(x, *o.get("on", ["query", "positive", "negative"]))
    drawn = torch.randint(len(at), (o["samples"], 4), generator=torch.Generator().manual_seed(7)).numpy()
    terms = []
    for i, j, m, n in at[drawn]:
        teacher = x["t"][i] @ x["t"][j] - x["t"][m] @ x["t"][n]
        if i != j and m != n and abs(teacher) > 1e-9:
            student = x["z"][i] @ x["z"][j] - x["z"][m] @ x["z"][n]
            terms.append(max(0.0, o.get("margin", 0.015) - np.sign(teacher) * student))
    return float(np.mean(terms))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()  # type: ignore[no-any-return]


def score_kl(x: dict[str, Array], o: dict[str, Any]) -> float:
    total = []
    for b in range(B):
        places = np.arange(12)
        if o.get("candidates") == "row":
            places = np.array([x["positive"][b], *[k for k in x["negative"][b] if k >= 0]])
        texts = x["document"][places]
        temperature = o.get("temperature", 0.05)
        p = softmax(x["t"][texts] @ x["t"][b] / temperature)
        q = softmax(x["z"][texts] @ x["z"][b] / temperature)
        total.append((p * np.log(p / q)).sum())
    return float(np.mean(total))


def margin_mse(x: dict[str, Array], o: dict[str, Any]) -> float:
    errors = []
    for b in range(B):
        for k in x["negative"][b]:
            if k >= 0:
                d = x["document"][x["positive"][b]], x["document"][k]
                student, teacher = (y[b] @ y[d[0]] - y[b] @ y[d[1]] for y in (x["z"], x["t"]))
                errors.append((student - teacher) ** 2)
    return float(np.mean(errors))


def cosent(x: dict[str, Array], o: dict[str, Any]) -> float:
    s = (x["z"][x["graded"][:, 0]] * x["z"][x["graded"][:, 1]]).sum(1)
    above = x["score"][:, None] > x["score"][None]
    return float(np.log(1 + np.exp(20 * (s[None] - s[:, None]))[above].sum()))


def spread(x: dict[str, Array], o: dict[str, Any]) -> float:
    total = 0.0
    for at in (chosen(x, "query"), chosen(x, "positive", "negative")):
        s = (x["z"][at] @ x["z"][at].T) ** 2
        total += (s.sum() - np.trace(s)) / (len(at) * (len(at) - 1))
    return float(total)


def cut(reference: "Reference") -> "Reference":
    """The mean of a loss of similarities on whole vectors and on the first five numbers; the teacher stays whole."""
    return lambda x, o: (reference(x, o) + reference(x | {"z": unit(x["z"][:, :5])}, o)) / 2


Reference = Callable[[dict[str, Array], dict[str, Any]], float]
CASES: list[tuple[str, Reference, dict[str, Any]]] = [
    ("match", match, {}),
    ("match", match, {"distance": "mse", "on": ["query", "negative"]}),
    ("match", match, {"on": ["positive"]}),
    ("match", match_cut, {"widths": [5], "width_weights": [3.0]}),
    ("match", match_cut, {"widths": [5], "distance": "mse"}),
    ("info_nce", nce, {}),
    ("info_nce", nce, {"temperature": 0.3, "margin": 0.1}),
    ("info_nce", nce, {"temperature": 0.3, "teacher_margin": 0.0}),
    ("info_nce", nce, {"temperature": 0.3, "hardness": 5.0}),
    ("info_nce", nce, {"temperature": 0.3, "same_tower": True}),
    ("info_nce", nce, {"temperature": 0.3, "same_tower": True, "margin": 0.1}),
    ("info_nce", nce, {"temperature": 0.3, "same_tower": True, "teacher_margin": 0.0}),
    ("info_nce", nce, {"temperature": 0.3, "same_tower": True, "margin": 0.2, "hardness": 5.0}),
    ("info_nce", cut(nce), {"temperature": 0.3, "widths": [5]}),
    ("gram", gram, {}),
    ("gram", gram, {"on": ["positive", "negative"]}),
    ("gram", cut(gram), {"widths": [5]}),
    ("relative", relative, {"samples": 50}),
    ("relative", relative, {"samples": 50, "on": ["query"]}),
    ("relative", relative, {"samples": 50, "margin": 0.3}),
    ("relative", cut(relative), {"samples": 50, "widths": [5]}),
    ("score_kl", score_kl, {}),
    ("score_kl", score_kl, {"candidates": "row"}),
    ("score_kl", score_kl, {"temperature": 0.3}),
    ("score_kl", cut(score_kl), {"widths": [5]}),
    ("margin_mse", margin_mse, {}),
    ("margin_mse", cut(margin_mse), {"widths": [5]}),
    ("cosent", cosent, {}),
    ("cosent", cut(cosent), {"widths": [5]}),
    ("spread", spread, {}),
    ("spread", cut(spread), {"widths": [5]}),
]
NAMES = [f"{kind}-{'-'.join(options) or 'plain'}" for kind, _, options in CASES]
NAMES = [name if NAMES.count(name) == 1 else f"{name}-{at}" for at, name in enumerate(NAMES)]


def loss_of(kind: str, options: dict[str, Any]) -> Any:
    return LOSS.validate_python({"kind": kind, **options})


def numeric_gradient(reference: Reference, x: dict[str, Array], options: dict[str, Any]) -> Array:
    """Of the reference, by central differences in float64, at a few numbers of z."""
    grads = []
    for i, j in ((0, 0), (3, 4), (10, 2), (17, 4)):
        sides = []
        for step in (1e-6, -1e-6):
            moved = x["z"].copy()
            moved[i, j] += step
            sides.append(reference(x | {"z": moved}, options | {"held": x}))
        grads.append((sides[0] - sides[1]) / 2e-6)
    return np.array(grads)


@pytest.mark.parametrize("kind, reference, options", CASES, ids=NAMES)
@pytest.mark.parametrize("tile", [4, 512])
def test_value_and_gradient_equal_the_reference(
    kind: str, reference: Reference, options: dict[str, Any], tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (train.views, train.contrast, train.losses_teacher):
        monkeypatch.setattr(module, "TILE", tile)
    x = example()
    views, z, _ = views_of(x)
    value = loss_part(loss_of(kind, options), views)
    value.backward()
    assert value.item() == pytest.approx(reference(x, options), rel=2e-4, abs=1e-5)
    assert z.grad is not None
    found = z.grad.numpy()[(0, 3, 10, 17), (0, 4, 2, 4)]
    np.testing.assert_allclose(found, numeric_gradient(reference, x, options), rtol=5e-3, atol=2e-4)


@pytest.mark.parametrize("kind, reference, options", CASES, ids=NAMES)
def test_the_parts_of_several_ranks_add_up(kind: str, reference: Reference, options: dict[str, Any]) -> None:
    loss = loss_of(kind, options)
    views, z, w = views_of(example())
    loss_part(loss, views).backward()
    total, grad_z, grad_w = 0.0, torch.zeros_like(z), torch.zeros_like(w)
    for at in range(3):
        part_views, part_z, part_w = views_of(example(), at, 3)
        part = loss_part(loss, part_views)
        part.backward()
        total += part.item()
        grad_z += part_z.grad if part_z.grad is not None else 0
        grad_w += part_w.grad if part_w.grad is not None else 0
    assert total == pytest.approx(loss_part(loss, views).item(), rel=1e-5)
    torch.testing.assert_close(grad_z, z.grad, rtol=1e-4, atol=1e-6)
    if w.grad is not None:
        torch.testing.assert_close(grad_w, w.grad, rtol=1e-4, atol=1e-6)


def test_hardness_weighs_a_negatives_gradient_but_has_none_of_its_own() -> None:
    x = example()
    views, z, _ = views_of(x)
    loss_part(loss_of("info_nce", {"temperature": 0.3, "hardness": 5.0}), views).backward()
    q, d, rows = x["z"][x["query"]], x["z"][x["document"]], np.arange(B)
    s = q @ d.T
    weight = np.exp(5 * s)
    weight[rows, x["positive"]] = 1
    share = usable(x) * weight * np.exp(s / 0.3)
    share /= share.sum(1, keepdims=True)
    share[rows, x["positive"]] -= 1
    assert z.grad is not None
    np.testing.assert_allclose(z.grad[: len(q)].numpy(), share @ d / 0.3 / B, rtol=1e-4, atol=1e-6)


def on_ranks(folder: str) -> dict[str, Any]:
    """This rank's gradient of its own texts for every loss, as it is and with a text of rank 1 moved."""
    dist.init_process_group("gloo")
    grads = {}
    for moved in (False, True):
        x = example()
        if moved:
            x["z"][17] = np.roll(x["z"][17], 3)  # a hard negative, held by rank 1
        mine = torch.arange(rank(), N, world_size())
        local = torch.tensor(x["z"], dtype=torch.float32)[mine].requires_grad_()
        filled = torch.cat([local, local.new_zeros(-(-N // world_size()) - len(local), D)])
        gathered = gather_rows(filled).view(world_size(), -1, D).transpose(0, 1).reshape(-1, D)[:N]
        w, t = (torch.tensor(x[name], dtype=torch.float32) for name in ("w", "t"))
        for name, (kind, _, options) in zip(NAMES, CASES, strict=True):
            views = make(x, gathered, local, w, t, mine, rank(), world_size())
            grad = torch.autograd.grad(loss_part(loss_of(kind, options), views), local, retain_graph=True)[0]
            grads[name, moved] = grad
    return {"mine": mine, "grads": grads}


def test_on_two_processes_every_gradient_is_that_of_one_and_a_negative_elsewhere_is_felt(tmp_path: Path) -> None:
    results = run_ranks(2, on_ranks, str(tmp_path))
    assert 17 in results[1]["mine"]
    order = torch.cat([result["mine"] for result in results]).argsort()
    for name, (kind, _, options) in zip(NAMES, CASES, strict=True):
        views, z, _ = views_of(example())
        loss_part(loss_of(kind, options), views).backward()
        together = torch.cat([result["grads"][name, False] for result in results])[order]
        torch.testing.assert_close(together, z.grad, rtol=1e-4, atol=1e-6, msg=name)
        felt = (results[0]["grads"][name, False] - results[0]["grads"][name, True]).abs().max()
        elsewhere = kind not in ("match", "cosent") and options.get("candidates") != "row"
        if elsewhere and options.get("on") != ["query"]:
            assert felt > 1e-5, name


@pytest.mark.parametrize("kind, reference, options", CASES, ids=NAMES)
def test_a_batch_without_the_rows_of_a_loss_is_a_zero_with_a_gradient(
    kind: str, reference: Reference, options: dict[str, Any]
) -> None:
    views, z, _ = views_of(example())
    none, nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, dtype=torch.int64)
    empty = replace(
        views,
        part_N=torch.zeros_like(views.part_N),
        local_part_n=torch.zeros_like(views.local_part_n),
        query_B=none,
        document_K=none,
        positive_B=none,
        query_group_B=none,
        document_group_K=none,
        negative_BH=torch.zeros(0, H, dtype=torch.int64),
        excluded_X2=nothing,
        graded_G2=nothing,
        score_G=torch.zeros(0),
    )
    value = loss_part(loss_of(kind, options), empty)
    value.backward()
    assert value.item() == 0.0
    assert z.grad is not None
    assert z.grad.abs().max() == 0


def test_no_matrix_over_all_texts_is_kept_for_the_backward_pass() -> None:
    x = example()
    rng = np.random.default_rng(1)
    x |= {"z": unit(rng.normal(size=(2000, D))), "t": unit(rng.normal(size=(2000, E))), "part": np.full(2000, 3)}
    z = torch.tensor(x["z"], dtype=torch.float32, requires_grad=True)
    t = torch.tensor(x["t"], dtype=torch.float32)
    views = make(x, z, z, torch.eye(E, D), t, torch.arange(2000), 0, 1)
    for kind in ("gram", "spread", "relative"):
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda y: kept.append(y) or y, lambda y: y):  # type: ignore[func-returns-value]  # noqa: B023
            loss_part(loss_of(kind, {}), views)
        assert max((y.numel() for y in kept), default=0) <= 2000 * E, kind


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_without_a_map_a_cut_vector_is_matched_to_the_teachers_cut_alike(distance: str) -> None:
    x = example()
    x["t"] = unit(np.random.default_rng(2).normal(size=(N, D)))
    views, z, _ = views_of(x | {"w": np.eye(D)})
    views = replace(views, cuts={})
    value = loss_part(loss_of("match", {"widths": [5], "distance": distance}), views)

    def reference(x: dict[str, Array], o: dict[str, Any]) -> float:
        pairs = (x["z"], x["t"]), (unit(x["z"][:, :5]), unit(x["t"][:, :5]))
        if distance == "mse":
            return float(np.mean([((z - t) ** 2).sum(1).mean() / 2 for z, t in pairs]))
        return float(np.mean([(1 - (unit(z) * t).sum(1)).mean() for z, t in pairs]))

    value.backward()
    assert value.item() == pytest.approx(reference(x, {}), rel=1e-5)
    assert z.grad is not None
    found = z.grad.numpy()[(0, 3, 10, 17), (0, 4, 2, 4)]
    np.testing.assert_allclose(found, numeric_gradient(reference, x, {}), rtol=5e-3, atol=2e-4)


def test_cosent_is_that_of_sentence_transformers() -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    x = example()
    views, _, _ = views_of(x)
    left, right = (torch.tensor(x["z"][x["graded"][:, side]], dtype=torch.float32) for side in (0, 1))
    theirs = losses.CoSENTLoss(torch.nn.Identity()).compute_loss_from_embeddings([left, right], views.score_G)
    assert loss_part(loss_of("cosent", {}), views).item() == pytest.approx(theirs.item(), rel=1e-5)


def test_cosent_at_a_large_scale_has_the_reference_s_gradient() -> None:
    x_G = torch.tensor([0.05, 0.95, 0.5, 0.9], requires_grad=True)
    views, _, _ = views_of(example())
    pairs = torch.nn.functional.normalize(torch.stack([x_G, (1 - x_G**2).sqrt()], dim=1), dim=1)
    text_ND = torch.cat([torch.tensor([[1.0, 0.0]]), pairs])
    graded = torch.tensor([[0, at] for at in range(1, 5)])
    loss = loss_of("cosent", {"scale": 100.0})
    views = replace(
        views, text_ND=text_ND, graded_G2=graded, score_G=torch.tensor([1.0, 2.0, 3.0, 4.0]), rank=0, ranks=1
    )
    loss_part(loss, views).backward()
    found = x_G.grad
    exact = x_G.detach().double().requires_grad_()
    terms = [100 * (exact[low] - exact[high]) for low in range(4) for high in range(low + 1, 4)]
    torch.logsumexp(torch.stack([torch.zeros((), dtype=torch.float64), *terms]), 0).backward()
    torch.testing.assert_close(found.double(), exact.grad, rtol=1e-3, atol=1e-3)


def test_what_an_own_loss_is_made_from_is_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_pulls.py").write_text("def pull(views):\n    return views.text_ND.sum()\n")
    own = loss_of("own", {"function": "my_pulls:pull"})
    before = own.source()
    assert before == own.source() != ""
    (tmp_path / "my_pulls.py").write_text("def pull(views):\n    return 2 * views.text_ND.sum()\n")
    assert own.source() != before


def test_an_own_loss_by_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("somebodys_losses")
    module.push = lambda views, by: by * views.text_ND[views.rows].sum()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebodys_losses", module)
    views, z, _ = views_of(example())
    own = loss_of("own", {"function": "somebodys_losses:push", "options": {"by": 2.0}})
    assert loss_part(own, views).item() == pytest.approx(2 * z[:B].sum().item())
    with pytest.raises(ValueError, match="has no function pull"):
        loss_of("own", {"function": "somebodys_losses:pull"}).load()
    with pytest.raises(ValueError, match="nobodys_losses cannot be imported"):
        loss_of("own", {"function": "nobodys_losses:pull"}).load()
    with pytest.raises(ValueError, match="expected package"):
        loss_of("own", {"function": "no_colon"})


def test_weights_may_follow_a_ramp() -> None:
    loss = loss_of("match", {"weight": {"start": 1.0, "end": 3.0, "begin": 0.25, "until": 0.75}})
    assert [loss.weight_at(step, 5) for step in range(5)] == [1.0, 1.0, 2.0, 3.0, 3.0]
    assert Ramp(start=0.0, end=1.0, shape="cosine").at(0.25) == pytest.approx(0.1464, abs=1e-4)
    assert projected_widths([loss_of("match", {"widths": [8, 4]}), loss_of("spread", {"widths": [2]})]) == [4, 8]
    with pytest.raises(ValueError, match="must lie before until"):
        loss_of("match", {"weight": {"start": 1.0, "end": 3.0, "begin": 0.5, "until": 0.5}})
    with pytest.raises(ValueError, match="expected distinct widths"):
        loss_of("spread", {"widths": [4, 4]})
