"""How often each head is right, on whole shards, with evaluation's pixels."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from student.bundle import Bundle, Prediction, check_fusion
from student.model import Student, fuse
from teacher_cache.errors import ImageError, RecipeError, ShardError
from teacher_cache.journal import progress
from teacher_cache.network import Card, EvalSpec
from teacher_cache.pixels import prepare
from teacher_cache.shards import ShardIndex, read_shard
from teacher_cache.store import worker_start

JOINT = "softmax-sum"


@dataclass(frozen=True)
class Shown:
    """Prepared images of one shard. keys: (B,). pixels: (B, S, S, 3) uint8. label: (B,) int64."""

    keys: list[str]
    pixels: Tensor
    label: Tensor


def measure(
    student: Student, index: ShardIndex, spec: EvalSpec, heads: tuple[str, ...], batch: int, workers: int
) -> dict[str, float]:
    """Top-1 in percent of each trained head and, of two, of the joint classifier (softmax-sum)."""
    ways = {name: name for name in heads} | ({"joint": JOINT} if len(heads) == 2 else {})
    return _count(student.eval(), index, spec, ways, batch, workers)


def accuracy_of(bundle: Bundle, index: ShardIndex, batch: int, workers: int, fusion: str) -> dict[str, float]:
    """Top-1 in percent of a bundle's heads and of their fusion ("": the card's).

    Raises RecipeError where the shards have other classes or the fusion needs a head that was not trained.
    """
    check_classes(bundle.card, index)
    how = check_fusion(bundle.card, fusion)
    heads = bundle.card.heads
    ways = {name: name for name in heads} | ({"joint": how} if len(heads) == 2 else {})
    return _count(bundle.student, index, bundle.card.eval, ways, batch, workers)


@torch.inference_mode()
def _count(
    student: Student, index: ShardIndex, spec: EvalSpec, ways: dict[str, str], batch: int, workers: int
) -> dict[str, float]:
    device = next(student.parameters()).device
    right = dict.fromkeys(ways, 0)
    with progress("evaluate", index.rows, "images") as bar:
        for shown in show(index, spec, batch, workers):
            answers = student(shown.pixels.to(device).permute(0, 3, 1, 2))
            for name, how in ways.items():
                right[name] += int((fuse(answers, how).argmax(dim=1).cpu() == shown.label).sum())
            bar.advance(len(shown.keys))
    return {name: 100 * count / index.rows for name, count in right.items()}


def show(index: ShardIndex, spec: EvalSpec, batch: int, workers: int) -> Iterator[Shown]:
    """Every image of an index, prepared as `spec` says, up to `batch` at a time.

    They come in order with one worker or none; more take shards by turns.
    """
    images = _Images(index, spec, batch)
    workers = min(workers, len(index.shards))
    start = worker_start(workers, *index.places)
    yield from DataLoader(images, batch_size=None, num_workers=workers, multiprocessing_context=start)


def predict_each(
    bundle: Bundle, index: ShardIndex, batch: int, workers: int, fusion: str
) -> Iterator[dict[str, Any]]:
    """One row an image: key, label, and what each head and their fusion say of it, just as the server would.

    Every image goes through the network by itself, as in the server, so the numbers are the server's own. Rows
    come in the order of the shards.
    """
    check_classes(bundle.card, index)
    how = check_fusion(bundle.card, fusion)
    with progress("predict", index.rows, "images") as bar, _one_thread():
        for shown in show(index, bundle.card.eval, batch, min(workers, 1)):
            for key, pixels, label in zip(shown.keys, shown.pixels, shown.label, strict=True):
                answer = bundle.predict(pixels[None], how)
                yield {"key": key, "label": int(label), **_tops(answer, bundle.card)}
            bar.advance(len(shown.keys))


@contextmanager
def _one_thread() -> Iterator[None]:
    """As the server computes: the number of threads can change the last bits of a convolution."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_classes(card: Card, index: ShardIndex) -> None:
    """Raises RecipeError where a network and a set of shards speak of different classes."""
    if tuple(card.classes) != index.classes:
        raise RecipeError(
            f"the model knows {len(card.classes)} classes ({', '.join(card.classes[:3])}, ...), the shards in '"
            f"{index.folder}' have {len(index.classes)} ({', '.join(index.classes[:3])}, ...); give fitting shards"
        )


def _tops(answer: Prediction, card: Card) -> dict[str, Any]:
    parts = {"class": answer.class_, "distill": answer.distill, "joint": answer.fused}
    names = ("class", "distill", "joint") if "distill" in card.heads else ("class",)
    return {name: {"index": int(parts[name].argmax()), "probability": float(parts[name].max())} for name in names}


class _Images(IterableDataset[Shown]):
    """Every worker takes every n-th shard."""

    def __init__(self, index: ShardIndex, spec: EvalSpec, batch: int) -> None:
        self._index, self._spec, self._batch = index, spec, batch

    def __iter__(self) -> Iterator[Shown]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for shard in range(first, len(self._index.shards), step):
            records = read_shard(self._index, shard)
            for start in range(0, len(records), self._batch):
                some = records[start : start + self._batch]
                pixels = [self._prepare(shard, record.key, record.image) for record in some]
                yield Shown([r.key for r in some], torch.stack(pixels), torch.tensor([r.label for r in some]))

    def _prepare(self, shard: int, key: str, image: bytes) -> Tensor:
        spec = self._spec
        try:
            return torch.from_numpy(prepare(image, spec.size, spec.crop, spec.interpolation))
        except ImageError as error:
            raise ShardError(f"shard '{self._index.url(shard)}': image '{key}' {error}") from None
