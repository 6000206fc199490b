"""A teacher at work on one cache: views in, logits out, encoded and written behind its back."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray

from teacher_cache.cache.encoding import Array
from teacher_cache.cache.layout import Unit
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.data.view_reader import ShardViews
from teacher_cache.distributed.device import HostCopy
from teacher_cache.errors import RunError
from teacher_cache.labeling.unit_dataset import UnitBatch
from teacher_cache.models.teacher import Teacher

LARGEST_LOGIT = float(np.finfo(np.float16).max) / 2  # so that differences fit too
MAX_PENDING_WRITES = 8
"""Batches that may wait to be encoded and written before the teacher waits for them."""


class Labeler:
    """Takes the views of units its cache lacks; use as a context, whose end waits for all writing.

    While the device works on one batch, the next is sent to it and the one before it fetched; encoding and writing
    have a thread of their own.
    """

    def __init__(
        self,
        teacher: Teacher,
        cache: TargetCache,
        wanted: set[Unit],
        device: torch.device,
        kept: Callable[[Unit], None] = lambda unit: None,
    ) -> None:
        """kept: is told, in the thread that writes, of each unit that has been written."""
        self.cache, self._kept = cache, kept
        self._teacher, self._wanted, self._device = teacher, wanted, device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._computing: deque[tuple[Unit, ShardViews, HostCopy]] = deque()
        self._writing: deque[Future[None]] = deque()
        self._unfinished: dict[Unit, _PartialUnit] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")

    def __enter__(self) -> "Labeler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.drain()
        finally:
            self._thread.shutdown(wait=True)

    def expect(self, unit: Unit) -> None:
        """Take the pieces of one more unit."""
        self._wanted.add(unit)

    def drain(self) -> None:
        """Wait until all that was taken is written, as far as its units are whole."""
        while self._computing:
            self._fetch()
        while self._writing:
            self._writing.popleft().result()

    def expects(self, unit: Unit) -> bool:
        return unit in self._wanted

    def submit(self, piece: UnitBatch) -> None:
        """Judge a piece of a unit that the cache lacks; raises what went wrong with earlier ones."""
        if piece.views is None or not self.expects(piece.unit):
            return
        with torch.cuda.stream(self._copies):  # nothing where there is no GPU
            batch = piece.views.batch.to(self._device)
        if self._copies:
            compute = torch.cuda.current_stream(self._device)
            compute.wait_stream(self._copies)
            for tensor in batch.tensors().values():
                tensor.record_stream(compute)
        self._computing.append((piece.unit, piece.views, HostCopy(self._teacher(batch.mixed(self._device)))))
        if len(self._computing) > 1:
            self._fetch()

    def commit_empty(self, unit: Unit) -> None:
        """Commit a unit of a shard without rows, of which no piece will tell."""
        if self.expects(unit):
            self.cache.write(unit, _PartialUnit(self.cache, unit).columns)
            self._kept(unit)

    def _fetch(self) -> None:
        unit, views, answer = self._computing.popleft()
        fetched = answer.wait().numpy()
        check_logits(self._teacher, views, fetched)
        self._writing.append(self._thread.submit(self._write, unit, views, fetched))
        while self._writing and (len(self._writing) > MAX_PENDING_WRITES or self._writing[0].done()):
            self._writing.popleft().result()

    def _write(self, unit: Unit, views: ShardViews, logits: NDArray[np.float32]) -> None:
        if unit not in self._unfinished:
            self._unfinished[unit] = _PartialUnit(self.cache, unit)
        part = self._unfinished[unit]
        part.put(views, logits)
        if part.left == 0:
            self.cache.write(unit, self._unfinished.pop(unit).columns)
            self._kept(unit)


def check_logits(teacher: Teacher, views: ShardViews, logits: NDArray[np.float32]) -> None:
    """Raises RunError where logits are no numbers, or none that float16 can hold."""
    sound = (np.abs(logits) <= LARGEST_LOGIT).all(axis=1)  # false for NaN too
    if not sound.all():
        key = views.keys[int(sound.argmin())]
        raise RunError(
            f"teacher '{teacher.name}' answers the view of '{key}' under seed {views.seed} with a logit "
            f"that is NaN or beyond {LARGEST_LOGIT:,.0f}; its training diverged, choose another"
        )


class _PartialUnit:
    """A unit in the making: the encoded rows so far."""

    def __init__(self, cache: TargetCache, unit: Unit) -> None:
        self._encoding, self._seeds = cache.encoding, cache.layout.seeds(unit)
        rows = cache.rows[unit.shard]
        self.left = len(self._seeds) * rows
        self._layout = self._encoding.columns(rows)
        self.columns: dict[str, Array] = {
            name: np.empty((len(self._seeds), *column.sizes), column.dtype)
            for name, column in self._layout.items()
        }

    def put(self, views: ShardViews, logits: NDArray[np.float32]) -> None:
        place, rows = views.seed - self._seeds.start, views.rows[: len(logits)]
        for name, values in self._encoding.encode(logits, views.digest[: len(logits)]).items():
            self.columns[name][place][self._layout[name].at(rows)] = values
        self.left -= len(rows)
