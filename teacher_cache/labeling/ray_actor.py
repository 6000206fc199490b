"""The Ray actor of a labeling job: each call labels one unit and returns when the unit is written."""

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
from teacher_cache.distributed.machine import loader_workers
from teacher_cache.distributed.ray_cluster import change_folder
from teacher_cache.labeling.labeler import Labeler
from teacher_cache.labeling.prepare import place_on_device
from teacher_cache.labeling.teacher_eval import evaluate_teacher
from teacher_cache.labeling.unit_dataset import UnitBatch, UnitDataset, check_memory, unit_loader
from teacher_cache.models.teacher import Teacher
from teacher_cache.recipe import CacheRecipe, JobSpec
from teacher_cache.views.view import VIEW_VERSION

POLL_SECONDS = 1.0
"""Interval at which a loader process without a unit checks that its parent is running."""

UnitRequest = tuple[Unit, list[str]]
"""A unit and the paths of the caches in which it is missing."""


@dataclass
class _UnitProgress:
    """A unit that is not yet written. views: not yet labeled. caches: not yet written. written: the result."""

    views: int
    caches: int
    written: "Future[None]" = field(default_factory=Future)


class BuildActor:
    """A process of a labeling job. Calls are concurrent; one thread does their work, in the order of the calls."""

    def start(
        self, folder: str, recipes: list[CacheRecipe], teachers: list[Teacher], index: ShardIndex, device: str
    ) -> None:
        """Open the caches and load the teachers, in the driver's folder if this machine has it. Writes nothing.

        Raises CacheError if a cache cannot be opened on this machine, or was created with other library versions.
        """
        change_folder(folder)
        caches = [TargetCache.open(recipe.cache.path) for recipe in recipes]
        versions = {"libraries": library_versions(), "view_version": VIEW_VERSION}
        for cache in caches:
            require_match(cache.manifest, versions, cache.where, "install the cache's versions on this node")
        torch_device, job = pick_device(device), recipes[0].job
        self._layout, self._lock, self._progress = caches[0].layout, Lock(), dict[Unit, _UnitProgress]()
        self._index, self._downloads = index, ThreadPoolExecutor(DOWNLOADS)
        self._error: BaseException | None = None
        self._labelers = [
            Labeler(place_on_device(teacher, recipe, torch_device), cache, set(), torch_device, self._on_written)
            for teacher, recipe, cache in zip(teachers, recipes, caches, strict=True)
        ]
        workers = loader_workers(job.workers, torch_device.type)
        check_memory(recipes[0], index, workers)
        paths = {*index.urls, *(cache.where for cache in caches)}
        self._queue = multiprocessing.get_context(worker_start(workers, *paths)).Queue()
        dataset = QueueUnitDataset(self._layout, self._queue, index, job, paths, workers)
        Thread(target=self._work, args=(dataset, torch_device.type == "cpu"), daemon=True).start()

    def label(self, unit: Unit, paths: list[str]) -> None:
        """Label a unit and return when it is written to these caches.

        Raises the error of this unit, or of an earlier one.
        """
        progress = _UnitProgress(len(self._layout.seeds(unit)) * self._layout.rows[unit.shard], len(paths))
        labelers = [labeler for labeler in self._labelers if labeler.cache.where in paths]
        with self._lock:
            if self._error:
                raise self._error
            self._progress[unit] = progress
        for labeler in labelers:
            labeler.expect(unit)
            if not progress.views:
                labeler.commit_empty(unit)
        if progress.views:
            self._downloads.submit(prefetch_shard, self._index, unit.shard)  # while earlier units are in progress
            self._queue.put((unit, paths))
        progress.written.result()

    def _work(self, dataset: "QueueUnitDataset", on_cpu: bool) -> None:
        if on_cpu:
            torch.set_num_threads(1)  # the other CPUs of the node have their own actors
        try:
            with ExitStack() as stack:
                for labeler in self._labelers:
                    stack.enter_context(labeler)
                for unit_batch in unit_loader(dataset, in_order=False):
                    self._submit(unit_batch)
        except BaseException as error:  # all waiting calls raise it
            with self._lock:
                self._error, progress, self._progress = error, self._progress, {}
            for unit_progress in progress.values():
                unit_progress.written.set_exception(error)

    def _submit(self, unit_batch: UnitBatch) -> None:
        for labeler in self._labelers:
            labeler.submit(unit_batch)
        if unit_batch.views is None:
            with self._lock:
                self._progress.pop(unit_batch.unit).written.set_result(None)
        else:
            with self._lock:
                if unit_batch.unit in self._progress:  # else the unit is already written
                    self._progress[unit_batch.unit].views -= len(unit_batch.views.batch.label)
        with self._lock:
            idle = all(progress.views <= 0 for progress in self._progress.values())
        if idle:  # no further batch will finish the ones in flight
            for labeler in self._labelers:
                labeler.drain()

    def _on_written(self, unit: Unit) -> None:
        with self._lock:
            progress = self._progress[unit]
            progress.caches -= 1
            if not progress.caches:
                self._progress.pop(unit).written.set_result(None)


class QueueUnitDataset(UnitDataset):
    """A UnitDataset whose workers take units from a shared queue until their parent exits."""

    def __init__(
        self, layout: Layout, queue: Any, index: ShardIndex, job: JobSpec, paths: set[str], workers: int
    ) -> None:
        super().__init__(layout, {}, index, job, workers)
        self._queue, self.paths = queue, paths

    def units(self, worker: int, workers: int) -> Iterator[UnitRequest]:
        parent = os.getppid()
        while os.getppid() == parent:
            with suppress(Empty):
                yield self._queue.get(timeout=POLL_SECONDS)


def evaluate_all(
    folder: str, recipes: list[CacheRecipe], teachers: list[Teacher], index: ShardIndex, device: str
) -> list[TeacherScore | None]:
    """Evaluate the teachers on a node of the cluster; None for a recipe without teacher.min_accuracy."""
    change_folder(folder)
    torch_device = pick_device(device)
    return [
        evaluate_teacher(recipe, teacher, index.classes, torch_device)
        for recipe, teacher in zip(recipes, teachers, strict=True)
    ]
