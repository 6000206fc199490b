"""Predictions of each head on whole shards, from the pixels of the evaluation transform."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from student.bundle.bundle import Bundle, HeadProbabilities, check_fusion, one_thread
from student.evaluation.metrics import Outcomes, score
from student.evaluation.test_set import LabeledSet, check_classes
from student.model.student import Student, fuse
from teacher_cache.console import progress
from teacher_cache.data.eval_images import eval_batches
from teacher_cache.data.index import ShardIndex
from teacher_cache.models.card import Card
from teacher_cache.models.spec import EvalSpec

JOINT = "softmax-sum"
READOUTS = ("class", "distill", "softmax-sum", "logit-mean")
"""How a class is read from the logits of two heads: from one head, or from a fusion of both (see `fuse`)."""


@dataclass(frozen=True)
class EvalOptions:
    """How predictions are computed. batch: images per forward pass. workers: processes that decode images."""

    device: torch.device
    batch: int = 64
    workers: int = 1


def measure(
    student: Student, index: ShardIndex, spec: EvalSpec, heads: tuple[str, ...], batch: int, workers: int
) -> dict[str, float]:
    """Top-1 in percent of each trained head and, if there are two, of the joint classifier (softmax-sum)."""
    readouts = {name: name for name in heads} | ({"joint": JOINT} if len(heads) == 2 else {})
    return _count_correct(student.eval(), index, spec, readouts, batch, workers)


@torch.inference_mode()
def _count_correct(
    student: Student, index: ShardIndex, spec: EvalSpec, readouts: dict[str, str], batch: int, workers: int
) -> dict[str, float]:
    device = next(student.parameters()).device
    correct = dict.fromkeys(readouts, 0)
    with progress("evaluate", index.rows, "images") as bar:
        for images in eval_batches(index, spec, batch, workers):
            heads = student(images.pixels.to(device).permute(0, 3, 1, 2))
            for name, readout in readouts.items():
                correct[name] += int((fuse(heads, readout).argmax(dim=1).cpu() == images.label).sum())
            bar.advance(len(images.keys))
    return {name: 100 * count / index.rows for name, count in correct.items()}


@dataclass(frozen=True)
class Predictions:
    """Outcomes of several networks on the N images of a set that have a true class.

    keys: N image keys. truth: (N, C) bool. readouts: outcomes by network name, then by readout. All have the same
    order.
    """

    keys: list[str]
    truth: Tensor
    readouts: dict[str, dict[str, Outcomes]]


def readouts_of(card: Card) -> tuple[str, ...]:
    """Readouts that a card's network supports; a network with one head has only one."""
    return ("class",) if len(card.heads) == 1 else READOUTS


@torch.inference_mode()
def predict_set(bundles: Mapping[str, Bundle], images: LabeledSet, batch: int, workers: int) -> Predictions:
    """Evaluate several networks with the same input transform (raw weights and EMA) in one pass over a set.

    Images without a true class are left out.
    """
    first = next(iter(bundles.values()))
    keys: list[str] = []
    truths: list[Tensor] = []
    batches: dict[str, dict[str, list[Outcomes]]] = {
        name: {readout: [] for readout in readouts_of(bundle.card)} for name, bundle in bundles.items()
    }
    with progress(f"evaluate {images.name}", images.index.rows, "images") as bar:
        for shown in eval_batches(images.index, first.card.eval, batch, workers):
            truth = images.truth(shown.keys, shown.label, len(first.card.classes))
            labeled = truth.any(dim=1)
            bar.advance(len(shown.keys))
            if not labeled.any():
                continue
            keys += [key for key, is_labeled in zip(shown.keys, labeled.tolist(), strict=True) if is_labeled]
            truths.append(truth[labeled])
            for name, bundle in bundles.items():
                heads = bundle.heads(shown.pixels[labeled])
                for readout, outcomes in batches[name].items():
                    outcomes.append(score(heads, readout, truth[labeled]))
    joined = {
        name: {readout: Outcomes.join(outcomes) for readout, outcomes in by_readout.items()}
        for name, by_readout in batches.items()
    }
    return Predictions(keys, torch.cat(truths), joined)


def predict_each(
    bundle: Bundle, index: ShardIndex, batch: int, workers: int, fusion: str
) -> Iterator[dict[str, Any]]:
    """Yield one row per image: key, label, and the top class of each head and of their fusion.

    Each image is a batch of one, as in the server, so the numbers equal the server's. Rows are in shard order.
    Raises RecipeError if the shards have other classes or the network does not support the fusion.
    """
    check_classes(bundle.card, index)
    readout = check_fusion(bundle.card, fusion)
    with progress("predict", index.rows, "images") as bar, one_thread():
        for shown in eval_batches(index, bundle.card.eval, batch, min(workers, 1)):
            for key, pixels, label in zip(shown.keys, shown.pixels, shown.label, strict=True):
                probabilities = bundle.predict(pixels[None], readout)
                yield {"key": key, "label": int(label), **_top_predictions(probabilities, bundle.card)}
            bar.advance(len(shown.keys))


def _top_predictions(probabilities: HeadProbabilities, card: Card) -> dict[str, Any]:
    by_name = {"class": probabilities.class_, "distill": probabilities.distill, "joint": probabilities.fused}
    names = ("class", "distill", "joint") if "distill" in card.heads else ("class",)
    return {
        name: {"index": int(by_name[name].argmax()), "probability": float(by_name[name].max())} for name in names
    }
