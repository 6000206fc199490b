"""Predictions of each head on whole shards, from the pixels of the evaluation transform."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from student.bundle.bundle import Bundle, HeadProbabilities, check_fusion, one_thread
from student.evaluation.metrics import Outcomes, score
from student.evaluation.test_set import LabeledSet, check_classes
from student.model.student import Heads, Student, fuse
from student.recipe import MachineSpec, TrainRecipe
from teacher_cache.console import progress
from teacher_cache.data.eval_images import EvalBatch, eval_batches, share
from teacher_cache.data.index import ShardIndex
from teacher_cache.distributed.collectives import all_reduce_sum, sync_errors
from teacher_cache.distributed.device import autocast, backend_flags
from teacher_cache.distributed.upload import uploaded
from teacher_cache.distributed.world import World
from teacher_cache.models.card import Card

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
    networks: Mapping[str, Student],
    index: ShardIndex,
    recipe: TrainRecipe,
    batch: int,
    workers: int,
    world: World = World(),
) -> dict[str, dict[str, float]]:
    """Top-1 in percent by network, then by trained head and, if there are two, "joint" (their softmax-sum).

    networks: equal on all processes; evaluated in the recipe's dtype. All processes of `world` call this and share
    the images. Raises as `eval_batches`.
    """
    readouts = {name: name for name in recipe.loss.heads}
    readouts |= {"joint": JOINT} if len(readouts) == 2 else {}
    rows = share(range(index.rows), world.rank, world.size)
    with sync_errors(world), progress("evaluate", len(rows), "images") as bar:
        machine = recipe.machine  # another size of batch would be compiled, or timed by cuDNN, again
        padded = machine.compile or machine.cudnn_benchmark
        images = eval_batches(index, recipe.eval, batch, workers, world, padded)
        correct = count_correct(networks, images, list(readouts.values()), machine, bar.advance)
    counts = all_reduce_sum(world, correct).tolist()  # the only wait for the device
    return {
        network: {name: 100 * count / index.rows for name, count in zip(readouts, row, strict=True)}
        for network, row in zip(networks, counts, strict=True)
    }


@torch.inference_mode()
def count_correct(
    networks: Mapping[str, Student],
    images: Iterator[EvalBatch],
    readouts: Sequence[str],
    machine: MachineSpec,
    on_images: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """(networks, readouts) int64 on the networks' device: the number of images that each classifies correctly.

    Images are copied to the device once for all networks. The host does not wait for the device.
    on_images: called after each batch with its number of images.
    """
    students = [student.eval() for student in networks.values()]
    device = next(students[0].parameters()).device
    correct = torch.zeros(len(students), len(readouts), dtype=torch.int64, device=device)
    with backend_flags(machine.dtype, machine.cudnn_benchmark):
        for batch in uploaded(images, device):
            for row, student in zip(correct, students, strict=True):
                with autocast(device, machine.dtype):
                    heads = student(batch.pixels.permute(0, 3, 1, 2))
                heads = Heads(*(logits.float() for logits in heads))
                classes = torch.stack([fuse(heads, readout).argmax(dim=1) for readout in readouts])
                row += (classes == batch.label).sum(dim=1)
            on_images(len(batch.keys))
    return correct


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
    with progress(f"evaluate {images.name}", images.index.rows, "images") as bar, backend_flags("float32"):
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
