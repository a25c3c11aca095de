"""Several objectives: weights, heads, frozen layers, layer dropout, and what is forgotten."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import naive_losses
import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from scipy.stats import spearmanr
from toys import COLOURS, THINGS, MakeBuild, row, toy_config, toy_rows

from datakit.errors import UserError
from datakit.opened import Build
from trainer import Embedder, checkpoint, heads, loop, objectives, stages
from trainer.config import Config, Lagging, Layers, ModelConfig, Stage
from trainer.data import TrainingRows
from trainer.evaluation import objectives as dev
from trainer.evaluation.retrieval import Task
from trainer.freezing import freeze, left_out
from trainer.losses import cosent
from trainer.model import Encoder, load_encoder
from trainer.report import Metrics

QUIET = Console(quiet=True)
OBJECTIVES = {"search": {"tasks": ["retrieval"]}, "alike": {"tasks": ["similarity"]}, "colour": {"categories": ["colours"]}}
LOSS = {"similarity": {}, "dimensions": [32, 8]}
Settings = dict[str, Any]


def graded(number: int) -> dict[str, Any]:
    one, two = divmod(number, 8)
    other = THINGS[(one + number % 3) % 8]
    return row(
        f"the {THINGS[one]} is {COLOURS[two]}",
        f"a {COLOURS[two]} {other}",
        category="pairs",
        task="similarity",
        score=1 - number % 3 / 2,
    )


def labelled(number: int) -> dict[str, Any]:
    one, two = divmod(number, 8)
    others = [COLOURS[(two + each) % 8] for each in (1, 3)]
    return row(
        f"where is {COLOURS[two]} {THINGS[one]}", COLOURS[two], category="colours", task="classification", negatives=others,
        label=COLOURS[two], in_batch_negatives=False,
    )  # fmt: skip


@pytest.fixture
def build(make_build: MakeBuild) -> Build:
    """64 rows to search, 48 graded, 40 with labels, 16 of no objective to train on; some of each to measure on."""
    search, rest = [{**each, "task": "retrieval"} for each in toy_rows()], toy_rows("rest", 2)
    pairs, colours = [graded(number) for number in range(64)], [labelled(number) for number in range(64)]
    return make_build([*search, *pairs[:48], *colours[:40], *rest[:16]], [*search[::4], *pairs[48:], *colours[40:], *rest[20:30]])


def config_of(base: str, *changes: Settings, **more: Any) -> Config:
    shared = {"objectives": OBJECTIVES, "loss": LOSS, "data": {"batch_size": 12, "negatives": 2}}
    return toy_config(base, [{**shared, **each} for each in changes or ({},)], **more)


def job_of(config: Config, build: Build, folder: Path) -> loop.Job:
    """The first stage in float64."""
    encoder = stages.prepared(config, config.stages[0]).double()
    rows = TrainingRows(build, str(folder), config.stages[0], config.seed)
    return loop.Job(config, config.stages[0], str(folder), encoder, rows, None, Task([], [], [], [], [], 0, None), [32])


def take(job: loop.Job, step: int, state: loop.State, optimizers: list[torch.optim.Optimizer]) -> tuple[loop.State, Settings]:
    return loop.take_step(step, job, state, optimizers, torch.amp.GradScaler("cpu", enabled=False))


def collected(encoder: Encoder) -> dict[str, torch.Tensor]:
    return {name: each.grad.to_dense().clone() for name, each in encoder.named_parameters() if each.grad is not None}


def test_batches_take_turns_and_no_row_comes_twice_in_an_epoch(tiny_base: str, build: Build, tmp_path: Path) -> None:
    job = job_of(config_of(tiny_base), build, tmp_path)
    for epoch in (0, 1):
        batches = [job.rows.batch(epoch, number, job.encoder, 0.0) for number in range(job.rows.batches_per_epoch)]
        assert [each.objective for each in batches] == ["alike", "colour", "search"] * 4
        assert {each.objective: each.group for each in batches} == {"alike": "pairs", "colour": "colours", "search": "things"}
        seen = [row_id for each in batches for row_id in each.row_ids]
        assert len(seen) == len(set(seen)) > 120
    assert len(job.rows) == 64 + 48 + 40


def test_rows_of_one_batch_group_and_two_objectives_share_no_batch(
    tiny_base: str, make_build: MakeBuild, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = ["retrieval", "classification", "bitext"]
    mixed = [{**each, "task": tasks[number % 3]} for number, each in enumerate(toy_rows())]
    named = {"search": {"tasks": ["retrieval"]}, "classes": {"tasks": ["classification"]}}
    job = job_of(config_of(tiny_base, {"objectives": named}), make_build(mixed, []), tmp_path)
    assert "21 rows are left out: they are of none of the objectives search, classes" in caplog.text
    wanted = {each["row_id"]: {"retrieval": "search", "classification": "classes"}.get(each["task"]) for each in mixed}
    batches = [job.rows.batch(0, number, job.encoder, 0.0) for number in range(job.rows.batches_per_epoch)]
    assert {each.objective for each in batches} == {"search", "classes"}
    assert all({wanted[row_id] for row_id in each.row_ids} == {each.objective} for each in batches)


@pytest.mark.parametrize("way", [{}, {"gradient_cache": True}, {"activation_checkpointing": True}, {"chunk_tokens": 40}], ids=str)
def test_the_gradient_of_a_step_is_that_of_the_weighted_sum_of_losses(
    way: Settings, tiny_base: str, build: Build, tmp_path: Path
) -> None:
    """Against naive losses, naive heads and the layers that were not left out, in float64."""
    named = {name: {**each, "weight": weight} for (name, each), weight in zip(OBJECTIVES.items(), (0.5, 2.0, 3.0), strict=True)}
    change = {"objectives": named, "lagging": {"every": 1}, "layers": {"frozen": 0.3, "dropout": 0.6}}
    training = {"steps": 12, "accumulate": 3, "chunk_tokens": 300, **way}
    config = config_of(tiny_base, change, training=training, model={"heads": {"layers": 2, "width": 6}}, optimizer={"clip": 1e9})
    job = job_of(config, build, tmp_path)
    for layer in job.encoder.base.layers:
        layer.self_attn.attention_dropout = 0.0
    with torch.no_grad():
        for parameter in job.encoder.heads.parameters():  # a new head is the identity
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) / 4)
    lambdas = {"alike": 0.9, "colour": 0.4, "search": 1.7}
    state = loop.State(0.05, objectives={n: {"lambda": v, "ratio": 1.0, "sum": 0.0, "batches": 0.0} for n, v in lambdas.items()})
    before = {name: each.detach().clone() for name, each in job.encoder.named_parameters()}
    skips = set()
    for step in range(3):
        with torch.no_grad():
            for name, each in job.encoder.named_parameters():
                each.copy_(before[name])
        take(job, step, state, loop.make_optimizers(job.encoder, job.stage.optimizer))
        found = collected(job.encoder)
        with torch.no_grad():
            for name, each in job.encoder.named_parameters():
                each.copy_(before[name])
        naive = stages.prepared(config, config.stages[0]).double()
        naive.activation_checkpointing(False)
        naive.load_state_dict(before)
        naive.eval()
        _, batches = job.batches(step)
        rows = sum(len(each.row_ids) for each in batches)
        whole = list(naive.base.layers)
        for number, batch in enumerate(batches):
            seed = loop.seed_of(config, job.stage, step, number)
            out = left_out(2, 0.6, seed)
            skips.add(tuple(out))
            naive.base.layers = torch.nn.ModuleList(each for place, each in enumerate(whole) if place - 1 not in out)
            naive.base.config.num_hidden_layers = len(naive.base.layers)
            first, second = naive.heads[batch.objective].first.weight, naive.heads[batch.objective].second.weight
            sides = [naive(naive.tokenize(texts)) for texts in (batch.queries, batch.documents)]
            q, d = (side + torch.nn.functional.gelu(side @ first.T) @ second.T for side in sides)
            targets = loop.targets_of(batch, None, naive.device)
            if batch.scores is not None:
                assert targets.scores is not None
                positives = d[targets.positive]
                loss = (
                    sum(
                        cosent(torch.nn.functional.cosine_similarity(q[:, :size], positives[:, :size]), targets.scores, 20.0)
                        for size in (32, 8)
                    )
                    / 2
                )
            else:
                loss = naive_losses.naive_loss(q, d, targets, job.stage.loss, 0.05, 0)
            weight = named[batch.objective]["weight"] * lambdas[batch.objective]
            torch.autograd.backward(weight * len(batch.row_ids) / rows * loss)
        naive.base.layers = torch.nn.ModuleList(whole)
        expected = collected(naive)
        assert set(found) == set(expected)
        assert {name.split(".")[1] for name in found if name.startswith("heads.")} == set(OBJECTIVES)
        assert not any(name.startswith(("base.layers.0.", "base.embed")) for name in found)
        for name, gradient in expected.items():
            assert gradient.norm() > 0, name
            assert (found[name] - gradient).norm() <= 1e-6 * gradient.norm(), (name, step)
    assert len(skips) > 1
    assert set().union(*skips) == {0, 1}


def test_only_the_head_of_the_objective_whose_turn_it_is_moves(tiny_base: str, build: Build, tmp_path: Path) -> None:
    job = job_of(config_of(tiny_base, {"layers": {"frozen": 0.67}}, model={"heads": {}}), build, tmp_path)
    optimizers, state = loop.make_optimizers(job.encoder, job.stage.optimizer), loop.State(0.05)
    for step in range(6):
        before = {name: each.detach().clone() for name, each in job.encoder.named_parameters()}
        state, _ = take(job, step, state, optimizers)
        moved = {name for name, each in job.encoder.named_parameters() if not torch.equal(each, before[name])}
        turn = ("alike", "colour", "search")[step % 3]
        assert {name for name in moved if name.startswith("heads")} == {f"heads.{turn}.first.weight"}
        assert {name.split(".")[2] for name in moved if name.startswith("base.layers")} == {"2"}
        assert not any(name.startswith("base.embed") for name in moved)


def test_lambda_is_the_softmax_of_the_fall_of_each_loss() -> None:
    config = Lagging(every=2, temperature=0.4)
    told = [
        [("a", 2.0), ("b", 1.0)], [("a", 4.0), ("b", 3.0), ("c", 0.5)],
        [("a", 1.0), ("b", 4.0)], [("a", 2.0)],
        [("c", 0.1)], [("b", 1.0)],
    ]  # fmt: skip
    # Means 3, 2, 0.5; then a 1.5, b 4, c nothing; then a nothing, b 1, c 0.1.
    ratios = [None, [1, 1, 1], None, [0.5, 2, 1], None, [0.5, 0.5, 0.2]]
    progress: dict[str, dict[str, float]] = {}
    for step, (losses, wanted) in enumerate(zip(told, ratios, strict=True)):
        progress = json.loads(json.dumps(objectives.with_losses(progress, losses, step, config)))
        if wanted is not None:
            powers = [math.exp(each / 0.4) for each in wanted]
            assert [progress[name]["lambda"] for name in "abc"] == pytest.approx([3 * each / sum(powers) for each in powers])
    stage = config_of("x").stages[0].model_copy(update={"objectives": {"a": objectives.Objective(tasks=["t"], weight=2.0)}})
    assert objectives.weights(stage, {}) == {"a": 2.0}
    assert objectives.weights(stage, progress) == {"a": pytest.approx(2 * progress["a"]["lambda"])}
    assert objectives.with_losses({}, [("a", 0.0)], 0, Lagging(every=1))["a"]["lambda"] == 1.0


def test_lagging_objectives_are_raised_in_a_run(tiny_base: str, build: Build, tmp_path: Path) -> None:
    change = {"lagging": {"every": 6, "temperature": 0.2}, "training": {"steps": 24}}
    stages.do(config_of(tiny_base, change), build, str(tmp_path / "run"), QUIET)
    lines = [json.loads(line) for line in (tmp_path / "run/one/log.jsonl").read_text().splitlines()]
    names = ["alike", "colour", "search"]
    assert all(line[f"weight_{name}"] == 1 for line in lines[:12] for name in names)
    for start in (6, 12):
        falls = {}
        for name in names:
            first, last = (
                np.mean([line[f"loss_{name}"] for line in lines[a : a + 6] if f"loss_{name}" in line]) for a in (0, start)
            )
            falls[name] = last / first
        powers = {name: math.exp(fall / 0.2) for name, fall in falls.items()}
        for name in names:
            wanted = 3 * powers[name] / sum(powers.values())
            assert lines[start + 6][f"weight_{name}"] == pytest.approx(wanted, rel=1e-3)
    assert max(lines[-1][f"weight_{name}"] for name in names) > 1.05


class Stopped(BaseException):
    """Ends a run at a chosen place, as a kill would."""


CASCADE: list[Settings] = [
    {"name": "search", "objectives": {"search": OBJECTIVES["search"]}, "training": {"steps": 5}},
    {
        "name": "alike", "objectives": {"alike": OBJECTIVES["alike"]},
        "layers": {"frozen": 0.34, "dropout": 0.2}, "training": {"steps": 5, "gradient_cache": True},
    },
    {
        "name": "all", "lagging": {"every": 2}, "layers": {"frozen": 0.34, "dropout": 0.5},
        "training": {"steps": 7, "accumulate": 3, "activation_checkpointing": True},
    },
]  # fmt: skip


def test_a_stopped_run_goes_on_to_the_same_weights_with_all_of_it_on(
    tiny_base: str, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tiny_base, *CASCADE, model={"heads": {"layers": 2, "width": 6}}, checkpoint={"every": 3})
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    _, metrics = stages.do(config, build, str(whole), QUIET)
    real = loop.take_step
    for wanted in (2, 4, 2, 4, 2, 3):  # steps that are done before each stop
        done = []

        def stop(*arguments: Any, wanted: int = wanted, done: list[int] = done) -> Any:
            done.append(1)
            if len(done) > wanted:
                raise Stopped
            return real(*arguments)

        with monkeypatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(loop, "take_step", stop)
            stages.do(config, build, str(stopped), QUIET)
    assert stages.do(config, build, str(stopped), QUIET)[1] == metrics.model_copy(
        update={"stages": [each.model_copy(update={"seconds": other.seconds}) for each, other in pairs_of(metrics, stopped)]}
    )
    for stage in ("search", "alike", "all"):
        files = list((whole / stage / "checkpoints").rglob("*.safetensors"))
        assert files
        for file in [*files, whole / stage / "model/heads.safetensors"]:
            expected, found = load_file(file), load_file(stopped / file.relative_to(whole))
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in found)
    weights = [{**load_file(whole / stage / "model/model.safetensors")} for stage in ("search", "alike", "all")]
    for one, other in pairwise(weights):
        frozen = [key for key in one if key.startswith(("layers.0.", "embed_tokens"))]
        assert len(frozen) == 10
        assert all(torch.equal(one[key], other[key]) for key in frozen)
        assert all(not torch.equal(one[key], other[key]) for key in one if key.startswith("layers.2.") and "norm" not in key)
    base = load_encoder(config.model).base.state_dict()
    assert not torch.equal(base["layers.0.mlp.up_proj.weight"], weights[2]["layers.0.mlp.up_proj.weight"])
    # An objective keeps its head until its turn comes.
    colour = [load_file(whole / stage / "model/heads.safetensors")["heads.colour.second.weight"] for stage in ("alike", "all")]
    assert not colour[0].any()
    assert colour[1].any()


def pairs_of(metrics: Metrics, folder: Path) -> list[tuple[Any, Any]]:
    found = Metrics.model_validate_json((folder / "metrics.json").read_text())
    return list(zip(metrics.stages, found.stages, strict=True))


def test_each_objective_has_its_metric_after_each_stage_and_what_is_forgotten_is_told(
    tiny_base: str, build: Build, tmp_path: Path
) -> None:
    config = config_of(tiny_base, *CASCADE[:2], {**CASCADE[2], "name": "last"})
    run, metrics = stages.do(config, build, str(tmp_path / "run"), QUIET)
    kinds = {"search": ("ndcg@10", 16), "alike": ("spearman", 16), "colour": ("accuracy", 24)}
    for scores in (metrics.objectives, *(stage.objectives for stage in metrics.stages)):
        assert {name: (each.metric, each.rows) for name, each in scores.items()} == kinds
    # From the exported model, one text at a time.
    embedder = Embedder.load(str(Path(run.folder) / "last/model"))

    def vector(text: str, kind: Any) -> np.ndarray:
        return embedder.encode([text], kind=kind)[0].astype(np.float64)

    rows = [graded(number) for number in range(48, 64)]
    cosines = [vector(each["query"], "query") @ vector(each["positive"], "document") for each in rows]
    expected = spearmanr(cosines, [each["score"] for each in rows]).statistic
    assert metrics.stages[2].objectives["alike"].score == pytest.approx(expected, abs=1e-6)
    right = 0
    for number in range(40, 64):
        nearness = {each: vector(labelled(number)["query"], "query") @ vector(each, "document") for each in COLOURS}
        right += max(nearness, key=lambda each: nearness[each]) == labelled(number)["label"]
    assert metrics.stages[2].objectives["colour"].score == pytest.approx(right / 24)
    first, second, last = metrics.stages
    assert first.forgotten == {}
    assert second.forgotten == {"search": first.objectives["search"].score - second.objectives["search"].score}
    best = max(stage.objectives["search"].score for stage in (first, second))
    assert last.forgotten == {
        "search": best - last.objectives["search"].score,
        "alike": second.objectives["alike"].score - last.objectives["alike"].score,
    }
    report = (tmp_path / "run/report.html").read_text()
    assert "search, ndcg@10" in report
    assert f"{last.objectives['search'].score:.3f} ({-last.forgotten['search']:+.3f})" in report
    console = Console(record=True, width=160)
    from trainer.report import tables

    console.print(tables(metrics))
    assert "alike, spearman" in console.export_text()


def test_exemplars_of_a_class_are_nearest_to_their_class_but_never_to_themselves(tiny_base: str, make_build: MakeBuild) -> None:
    """Each text is an exemplar too, so that a model that finds a text itself would be right always."""
    texts = [(f"{colour} {thing}", colour) for colour in COLOURS[:3] for thing in THINGS[:4]]
    made = [
        row(text, texts[(number + 5) % 12][0], category="colours", task="classification", label=label, in_batch_negatives=False)
        for number, (text, label) in enumerate(texts)
    ]
    # Labels of the exemplars: a text's class stands beside it only where it is the positive.
    for number, each in enumerate(made):
        each["label"] = texts[(number + 5) % 12][1]
    config = config_of(tiny_base)
    encoder = load_encoder(config.model)
    ours = dev.load(make_build(made, made), config)
    assert set(ours) == {"colour"}
    queries = {each["query"]: encoder.embed([encoder.query_text(each["query"], None)])[0] for each in made}
    documents = {
        each["positive"]: (encoder.embed([encoder.document_text(each["positive"], None)])[0], each["label"]) for each in made
    }
    right = 0
    for each in made:
        others = {text: vector @ queries[each["query"]] for text, (vector, _) in documents.items() if text != each["query"]}
        right += documents[max(others, key=lambda text: others[text])][1] == each["label"]
    assert dev.measure(encoder, ours)["colour"].score == pytest.approx(right / 12)


def test_a_new_head_changes_nothing_and_an_export_has_it_beside_the_encoder(tiny_base: str, build: Build, tmp_path: Path) -> None:
    config = config_of(tiny_base, CASCADE[2], model={"heads": {"layers": 2, "width": 6}})
    encoder = stages.prepared(config, config.stages[0])
    vectors = encoder.embed([encoder.query_text("what is red house", None)])
    for settings in ({"layers": 1}, {"layers": 2, "width": 6}):
        fresh = stages.prepared(config_of(tiny_base, model={"max_length": 24, "heads": settings}), config.stages[0])
        assert np.array_equal(heads.through(fresh.heads["search"], vectors), vectors)
    run, _ = stages.do(config, build, str(tmp_path / "run"), QUIET)
    checkpoint.load_weights(checkpoint.place(run.path("all", "checkpoints"), 7), encoder)
    encoder.compute = torch.float32  # as the export
    embedder = Embedder.load(run.path("model"))
    text = "what is red house"
    whole = encoder.embed([encoder.document_text(text, None)])
    np.testing.assert_allclose(embedder.encode([text], prompt=""), whole, atol=1e-5)
    assert sorted(embedder.heads) == sorted(OBJECTIVES)
    for name in OBJECTIVES:
        expected = heads.through(encoder.heads[name], whole)[:, :8]
        found = embedder.encode([text], dim=8, prompt="", head=name)
        np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-5)
        assert not np.allclose(found, embedder.encode([text], dim=8, prompt=""), atol=1e-4)
    with pytest.raises(UserError, match=r"There is no head 'other'; the model has: alike, colour, search\."):
        embedder.encode([text], head="other")


def test_a_head_of_five_percent_is_refused(tiny_base: str) -> None:
    whole = sum(each.numel() for each in load_encoder(ModelConfig(base=tiny_base)).parameters())
    most = math.ceil(0.05 * whole / 64) - 1
    stages.prepared(config_of(tiny_base, model={"heads": {"layers": 2, "width": most}}), config_of(tiny_base).stages[0])
    with pytest.raises(UserError, match=rf"a head of 2 layers has {(most + 1) * 64:,} parameters, .* less than 5%"):
        stages.prepared(config_of(tiny_base, model={"heads": {"layers": 2, "width": most + 1}}), config_of(tiny_base).stages[0])
    with pytest.raises(ValueError, match="width is 6 with layers: 1; it lies between two layers"):
        config_of(tiny_base, model={"heads": {"layers": 1, "width": 6}})


@pytest.mark.parametrize(("share", "lowest"), [(0.1, 0), (0.2, 1), (0.34, 1), (0.5, 2), (0.67, 2), (0.99, 2)])
def test_the_lowest_layers_and_the_embeddings_are_frozen(share: float, lowest: int, tiny_base: str) -> None:
    encoder = load_encoder(ModelConfig(base=tiny_base, projection=16))
    every = dict(encoder.named_parameters())
    freeze(encoder, Layers(frozen=share))
    frozen = ("base.embed_tokens.", *(f"base.layers.{number}." for number in range(lowest)))
    assert {name for name, each in every.items() if not each.requires_grad} == {name for name in every if name.startswith(frozen)}
    assert set(checkpoint.trained(encoder)) == set(every)


def test_layers_are_left_out_with_the_probability_and_never_all_and_only_in_training(tiny_base: str) -> None:
    draws = [left_out(4, 0.3, seed) for seed in range(4000)]
    assert all(left_out(2, 0.99, seed) != [0, 1] for seed in range(200))
    for layer in range(4):
        # All four are drawn with 0.3^4, and then one of them stays.
        assert np.mean([layer in out for out in draws]) == pytest.approx(0.3 - 0.3**4 / 4, abs=0.02)
    encoder = load_encoder(ModelConfig(base=tiny_base))
    tokens = encoder.tokenize([encoder.query_text(text, None) for text in ("what is red house", "where is the river", "a")])
    plain = encoder.eval()(tokens, 1)
    freeze(encoder, Layers(dropout=0.9))
    assert torch.equal(encoder(tokens, 1), plain)
    for layer in encoder.base.layers:
        layer.self_attn.attention_dropout = 0.0
    encoder.train()
    calls: list[int] = []
    for number, layer in enumerate(encoder.base.layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: calls.append(number))
    found = encoder(tokens, 1)
    assert calls == [number for number in range(3) if number not in left_out(3, 0.9, 1)]
    assert not torch.allclose(found, plain)
    encoder.chunk_tokens = 4
    # Chunks are no matter: it is the batch that goes through these layers.
    torch.testing.assert_close(encoder(tokens, 1), found)
    assert all("forward" not in vars(layer) for layer in encoder.base.layers)


def test_where_one_layer_is_left_to_drop_that_is_said(tiny_base: str, caplog: pytest.LogCaptureFixture) -> None:
    freeze(load_encoder(ModelConfig(base=tiny_base)), Layers(frozen=0.67, dropout=0.3))
    assert "layers.dropout has no effect: of 3 layers one alone is not frozen" in caplog.text


def test_earlier_rows_may_be_graded_but_not_all(tiny_base: str, build: Build, make_build: MakeBuild, tmp_path: Path) -> None:
    held = {"consolidation": {"strength": 1.0, "rows": 2, "build": build.path}}
    stages.do(config_of(tiny_base, held, training={"steps": 1}), build, str(tmp_path / "run"), QUIET)
    alone = make_build([graded(number) for number in range(8)], [graded(9)], name="graded")
    held = {"objectives": {}, "consolidation": {"strength": 1.0, "build": alone.path}}
    with pytest.raises(UserError, match=r"graded' has no row in 'train' that stage 'one' can be trained on"):
        stages.do(config_of(tiny_base, held), build, str(tmp_path / "no"), QUIET)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("name", ["training", "items"])
def test_an_objective_with_a_head_has_no_name_that_torch_uses(name: str, tiny_base: str) -> None:
    config = config_of(tiny_base, {"objectives": {name: {"tasks": ["retrieval"]}}}, model={"heads": {"layers": 2, "width": 1}})
    with pytest.raises(UserError, match=f"an objective cannot be named '{name}'"):
        stages.prepared(config, config.stages[0])


def test_what_cannot_be_is_refused_before_training(tiny_base: str, build: Build, tmp_path: Path) -> None:
    wrong = {"second": {"tasks": ["bitext"]}, **OBJECTIVES}
    config = config_of(tiny_base, {}, {"name": "two", "objectives": wrong})
    with pytest.raises(UserError, match=r"Stage 'two': no row .* is of objective 'second' \(tasks: \['bitext'\]"):
        stages.do(config, build, str(tmp_path / "run"), QUIET)
    assert not (tmp_path / "run").exists()
    config = config_of(tiny_base, {"loss": {}})
    with pytest.raises(UserError, match=r"objective 'alike' .*graded rows need loss\.similarity"):
        TrainingRows(build, str(tmp_path), config.stages[0], 0)
    for settings, message in (
        ({"objectives": {"x": {}}}, "tasks and categories are empty"),
        ({"objectives": {"x.y": {"tasks": ["similarity"]}}}, "pattern"),
        ({"objectives": {"x": {"tasks": ["similarity"], "weight": 0}}}, "greater than 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Stage.model_validate({"name": "one", "training": {"steps": 1}, **settings})
    with pytest.raises(ValueError, match="lagging compares objectives; it has 1, give two"):
        config_of(tiny_base, {"objectives": {"x": {"tasks": ["similarity"]}}, "lagging": {}})
    with pytest.raises(ValueError, match="objective 'search' has other rows in stage 'one' than in a later one"):
        config_of(tiny_base, {}, {"name": "two", "objectives": {"search": {"tasks": ["similarity"]}}})
