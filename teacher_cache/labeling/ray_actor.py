"""The teacher job where a cluster puts it: units come one by one, and each is answered when it is written."""

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from queue import Empty
from threading import Lock, Thread
from typing import Any

import torch

from teacher_cache.cache.layout import Layout, Unit
from teacher_cache.cache.manifest import library_versions, require_match
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.cache.teacher_score import TeacherScore
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.loader import worker_start
from teacher_cache.data.prefetch import DOWNLOADS, prefetch_shard
from teacher_cache.distributed.device import pick_device
from teacher_cache.distributed.ray_cluster import change_folder
from teacher_cache.labeling.labeler import Labeler
from teacher_cache.labeling.prepare import place_on_device
from teacher_cache.labeling.teacher_eval import evaluate_teacher
from teacher_cache.labeling.unit_dataset import UnitBatch, UnitDataset, unit_loader
from teacher_cache.models.teacher import Teacher
from teacher_cache.recipe import CacheRecipe, JobSpec
from teacher_cache.views.view import VIEW_VERSION

ASK_SECONDS = 1.0
"""How often one that waits for a unit looks whether its parent still lives."""

Wanted = tuple[Unit, list[str]]
"""A unit, and the places of the caches that lack it."""


@dataclass
class _UnitProgress:
    """A unit on its way. views: to be judged yet. caches: to be written yet."""

    views: int
    caches: int
    written: "Future[None]" = field(default_factory=Future)


class BuildActor:
    """One of a job's processes. Its calls come side by side; a thread of its own does the work, in their order."""

    def start(
        self, folder: str, recipes: list[CacheRecipe], teachers: list[Teacher], index: ShardIndex, device: str
    ) -> None:
        """Make ready, in the driver's folder where this machine has it; nothing is written yet.

        Raises CacheError where the caches cannot be seen from here, or were begun with other libraries.
        """
        change_folder(folder)
        caches = [TargetCache.open(recipe.cache.path) for recipe in recipes]
        here = {"libraries": library_versions(), "view_version": VIEW_VERSION}
        for cache in caches:
            require_match(cache.manifest, here, cache.where, "install there what the cache was begun with")
        chosen, job = pick_device(device), recipes[0].job
        self._layout, self._lock, self._begun = caches[0].layout, Lock(), dict[Unit, _UnitProgress]()
        self._index, self._ahead = index, ThreadPoolExecutor(DOWNLOADS)
        self._error: BaseException | None = None
        self._judges = [
            Labeler(place_on_device(teacher, recipe, chosen), cache, set(), chosen, self._on_written)
            for teacher, recipe, cache in zip(teachers, recipes, caches, strict=True)
        ]
        places = {*index.places, *(cache.where for cache in caches)}
        self._feed = multiprocessing.get_context(worker_start(job.workers, *places)).Queue()
        pieces = QueueUnitDataset(self._layout, self._feed, index, job, places)
        Thread(target=self._work, args=(pieces, job.workers, chosen.type == "cpu"), daemon=True).start()

    def label(self, unit: Unit, places: list[str]) -> None:
        """Returns when these caches have the unit; raises what went wrong with it, or with one before it."""
        begun = _UnitProgress(len(self._layout.seeds(unit)) * self._layout.rows[unit.shard], len(places))
        wanting = [judge for judge in self._judges if judge.cache.where in places]
        with self._lock:
            if self._error:
                raise self._error
            self._begun[unit] = begun
        for judge in wanting:
            judge.expect(unit)
            if not begun.views:
                judge.commit_empty(unit)
        if begun.views:
            self._ahead.submit(prefetch_shard, self._index, unit.shard)  # while those before it are worked on
            self._feed.put((unit, places))
        begun.written.result()

    def _work(self, pieces: "QueueUnitDataset", workers: int, on_cpu: bool) -> None:
        if on_cpu:
            torch.set_num_threads(1)  # of this thread: the others of the node's CPUs have actors of their own
        try:
            with ExitStack() as stack:
                for judge in self._judges:
                    stack.enter_context(judge)
                for piece in unit_loader(pieces, workers, in_order=False):
                    self._submit(piece)
        except BaseException as error:  # whatever it is, the calls that wait raise it
            with self._lock:
                self._error, begun, self._begun = error, self._begun, {}
            for one in begun.values():
                one.written.set_exception(error)

    def _submit(self, piece: UnitBatch) -> None:
        if piece.examples is None:
            with self._lock:
                self._begun.pop(piece.unit).written.set_result(None)
        else:
            for judge in self._judges:
                judge.submit(piece)
            with self._lock:
                if piece.unit in self._begun:  # else its last piece is written already
                    self._begun[piece.unit].views -= len(piece.examples.label)
        with self._lock:
            idle = all(begun.views <= 0 for begun in self._begun.values())
        if idle:  # no piece is to come that would push these on
            for judge in self._judges:
                judge.drain()

    def _on_written(self, unit: Unit) -> None:
        with self._lock:
            begun = self._begun[unit]
            begun.caches -= 1
            if not begun.caches:
                self._begun.pop(unit).written.set_result(None)


class QueueUnitDataset(UnitDataset):
    """The pieces of units that a queue gives, to whichever worker asks first."""

    def __init__(self, layout: Layout, feed: Any, index: ShardIndex, job: JobSpec, places: set[str]) -> None:
        super().__init__(layout, {}, index, job)
        self._feed, self.places = feed, places

    def units(self, number: int, workers: int) -> Iterator[Wanted]:
        parent = os.getppid()
        while os.getppid() == parent:
            with suppress(Empty):
                yield self._feed.get(timeout=ASK_SECONDS)


def evaluate_all(
    folder: str, recipes: list[CacheRecipe], teachers: list[Teacher], index: ShardIndex, device: str
) -> list[TeacherScore | None]:
    """The teachers' examinations, on a machine of the cluster."""
    change_folder(folder)
    chosen = pick_device(device)
    return [
        evaluate_teacher(recipe, teacher, index.classes, chosen)
        for recipe, teacher in zip(recipes, teachers, strict=True)
    ]
