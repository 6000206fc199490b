"""The report's figures show the numbers that the runs' own weights and predictions give."""

import re
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from student.bundle.bundle import Bundle, open_bundle, open_raw_and_ema
from student.evaluation.predict import predict_each
from student.report import report as report_module
from student.report.html_page import Part, write_page
from student.report.report import Baselines, EvalOptions, report
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.shards import read_shard
from teacher_cache.models.run_folder import FINAL
from teacher_cache.views.eval_transform import decode_for_eval

CPU = torch.device("cpu")
BATCH = 16
SLEEP_SECONDS = {"student": 0.1, "alone": 0.05}
"""Added to every forward pass, so that its speed is known; every third takes three times as long."""
SAMPLES = 8
HEADS, BLOCKS, EPSILON = 2, 2, 1e-6
"""Heads and blocks of the tests' transformer, and the epsilon of timm's layer norms."""

Answers = NDArray[np.int64]


@pytest.fixture(scope="module")
def parts(
    student_run: Path, alone_run: Path, teacher_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Part]]:
    """Parts of the report page for two runs, by name."""
    kept: list[Part] = []

    def keep(folder: Path, title: str, subtitle: str, parts: list[Part], origin: str) -> Path:
        kept.extend(parts)
        return write_page(folder, title, subtitle, parts, origin)

    def slowed(run: Path, device: torch.device) -> dict[str, Bundle]:
        bundles, passes = open_raw_and_ema(run, device), iter(range(10**6))
        bundles["raw"].student.register_forward_pre_hook(
            lambda *_: time.sleep(SLEEP_SECONDS[run.name] * (1 if next(passes) % 3 else 3))
        )
        return bundles

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_module, "write_page", keep)
        patch.setattr(report_module, "open_raw_and_ema", slowed)
        out, machine = tmp_path_factory.mktemp("report"), EvalOptions(CPU, BATCH, workers=0)
        report([student_run, alone_run], "", Baselines(teacher_run, alone_run), out, machine)
    yield {part.name: part for part in kept}


@pytest.fixture(scope="module")
def answers(
    shards: ShardIndex, student_run: Path, alone_run: Path, teacher_run: Path
) -> dict[str, dict[str, Answers]]:
    """Each network's answers by head, and the truth, as `limbeck evaluate --predictions` gives them."""
    found = {}
    for name, run in (("student", student_run), ("alone", alone_run), ("teacher", teacher_run)):
        rows = list(predict_each(open_bundle(run, CPU), shards, 1, 0, ""))
        assert len({row["key"] for row in rows}) == shards.rows
        found[name] = {
            head: np.array([row[head]["index"] for row in rows]) for head in rows[0].keys() - {"key", "label"}
        }
        found[name]["truth"] = np.array([row["label"] for row in rows])
    return found


def axes_of(part: Part) -> Any:
    assert part.figure is not None
    (axes,) = part.figure.axes
    return axes


def test_disagreement_is_the_share_of_predictions_that_differ(
    parts: dict[str, Part], answers: dict[str, dict[str, Answers]]
) -> None:
    student = answers["student"]
    compared = {
        "truth": student["truth"],
        "teacher": answers["teacher"]["class"],
        "undistilled": answers["alone"]["class"],
        **{head: student[head] for head in ("class", "distill", "joint")},
    }
    expected = np.array([[np.mean(one != other) for other in compared.values()] for one in compared.values()])
    assert len(np.unique(expected)) > 5, "otherwise the test proves little"
    axes = axes_of(parts["disagreement"])
    for axis in (axes.xaxis, axes.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == list(compared)
    (image,) = axes.images
    assert np.allclose(image.get_array(), expected, rtol=0, atol=1e-12)
    written = {text.get_position()[::-1]: text.get_text() for text in axes.texts}
    assert written == {place: f"{share:.3f}" for place, share in np.ndenumerate(expected)}


def norm(tokens: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], EPSILON)


def linear(tokens: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return F.linear(tokens, weights[f"{name}.weight"], weights[f"{name}.bias"])


def tokens_by_layer(weights: dict[str, Tensor], pixels: Tensor) -> Iterator[Tensor]:
    """The transformer (Dosovitskiy et al. 2020, eq. 1 to 3) by hand: (N, 2 + patches, D) after each block.

    pixels: (N, 3, S, S), normalized. The tokens are the class, the distillation token, and the patches.
    """
    kernel = weights["patch_embed.proj.weight"]
    patches = F.conv2d(pixels, kernel, weights["patch_embed.proj.bias"], stride=kernel.shape[-1])
    prefix = torch.cat((weights["cls_token"], weights["dist_token"]), dim=1).expand(len(pixels), -1, -1)
    tokens = torch.cat((prefix, patches.flatten(2).transpose(1, 2)), dim=1) + weights["pos_embed"]
    for block in (f"blocks.{number}" for number in range(BLOCKS)):
        qkv = linear(norm(tokens, weights, f"{block}.norm1"), weights, f"{block}.attn.qkv")
        query, key, value = qkv.unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        paid = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(dim=3)
        seen = (paid @ value).transpose(1, 2).flatten(2)
        tokens = tokens + linear(seen, weights, f"{block}.attn.proj")
        wide = F.gelu(linear(norm(tokens, weights, f"{block}.norm2"), weights, f"{block}.mlp.fc1"))
        tokens = tokens + linear(wide, weights, f"{block}.mlp.fc2")
        yield tokens


def cosine(one: Tensor, other: Tensor) -> float:
    """Mean over the rows of two (N, D)."""
    return float(((one * other).sum(dim=1) / one.norm(dim=1) / other.norm(dim=1)).mean())


def test_cosines_are_those_of_the_tokens_that_the_weights_give(
    parts: dict[str, Part], student_run: Path, shards: ShardIndex
) -> None:
    (file,) = (student_run / FINAL).glob("*.safetensors")
    weights = {name: tensor.double() for name, tensor in load_file(file).items()}
    card = open_bundle(student_run, CPU).card
    records = [record for number in range(len(shards.shards)) for record in read_shard(shards, number)]
    chosen = [records[number * len(records) // SAMPLES] for number in range(SAMPLES)]
    crops = np.stack(
        [
            decode_for_eval(record.image, card.eval.size, card.eval.crop, card.eval.interpolation)
            for record in chosen
        ]
    )
    mean, std = np.array(card.network.mean), np.array(card.network.std)
    pixels = torch.from_numpy((crops / 255 - mean) / std).permute(0, 3, 1, 2)
    expected = [
        cosine(weights["cls_token"][0], weights["dist_token"][0]),
        *(cosine(tokens[:, 0], tokens[:, 1]) for tokens in tokens_by_layer(weights, pixels)),
    ]
    assert all(abs(one - other) > 1e-3 for one, other in pairwise(expected)), "otherwise the test proves little"
    curves = [line for line in axes_of(parts["cosine"]).lines if line.get_label() == "student"]
    assert [list(curve.get_xdata()) for curve in curves] == [[0, 1, 2]]
    assert np.allclose(curves[0].get_ydata(), expected, rtol=0, atol=1e-5)


def test_throughput_is_the_fastest_passes_images_a_second_against_the_predictions_accuracy(
    parts: dict[str, Part], answers: dict[str, dict[str, Answers]]
) -> None:
    axes = axes_of(parts["throughput"])
    points = {
        text.get_text(): (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for text, line in zip(axes.texts, axes.lines, strict=True)
    }
    assert points.keys() == {"student", "alone"}
    for name, head in (("student", "joint"), ("alone", "class")):
        speed, top1 = points[name]
        assert top1 == pytest.approx(100 * np.mean(answers[name][head] == answers[name]["truth"]))
        most = BATCH / SLEEP_SECONDS[name]  # a pass sleeps for no less; it computes for some milliseconds
        assert 0.75 * most < speed <= most
        assert axes.texts[list(points).index(name)].xy == (speed, top1)
        shown = {row[-1] for row in parts["summary"].table if row[0] == name}
        assert shown == {f"{speed:,.0f}"}


def test_the_summary_has_the_predictions_accuracy(
    parts: dict[str, Part], answers: dict[str, dict[str, Answers]]
) -> None:
    heading, *rows = parts["summary"].table
    column = heading.index("top-1, %")
    shown = {(row[0], row[2]): float(re.match(r"[\d.]+", row[column])[0]) for row in rows}  # type: ignore[index]
    named = {"student": "student", "alone": "alone", "teacher": "teacher", "undistilled": "alone"}
    for (name, way), value in shown.items():
        if way in ("class", "distill", "softmax-sum"):
            predicted = answers[named[name]]
            head = predicted["joint" if way == "softmax-sum" else way]
            assert value == pytest.approx(100 * np.mean(head == predicted["truth"]), abs=0.005)
    assert {("student", "softmax-sum"), ("alone", "class"), ("teacher", "class")} <= shown.keys()
