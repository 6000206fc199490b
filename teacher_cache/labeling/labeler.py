"""Label views with a teacher and write the targets to one cache, in a pipeline."""

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
from teacher_cache.data.view_batch import ViewBatch
from teacher_cache.data.view_reader import ShardViews
from teacher_cache.distributed.device import HostCopy
from teacher_cache.distributed.upload import Upload, copy_stream
from teacher_cache.errors import RunError
from teacher_cache.labeling.unit_dataset import UnitBatch
from teacher_cache.models.teacher import Teacher

LARGEST_LOGIT = float(np.finfo(np.float16).max) / 2  # so that differences of two logits fit in float16
MAX_PENDING_WRITES = 8
"""Maximum number of batches waiting to be encoded and written; then the teacher waits."""


class Labeler:
    """Labels batches of views and writes finished units. A context manager; its exit waits for all writes.

    While the device computes one batch, the next is copied to it and the previous logits are copied back. A thread
    encodes and writes.
    """

    def __init__(
        self,
        teacher: Teacher,
        cache: TargetCache,
        expected: set[Unit],
        device: torch.device,
        on_written: Callable[[Unit], None] = lambda unit: None,
    ) -> None:
        """expected: the units to label. on_written: called in the writer thread after each written unit."""
        self.cache, self._on_written = cache, on_written
        self._teacher, self._expected, self._device = teacher, expected, device
        self._copy_stream = copy_stream(device)
        self._upload: Upload[ViewBatch] | None = None
        self._in_flight: deque[tuple[Unit, ShardViews, HostCopy]] = deque()
        self._pending_writes: deque[Future[None]] = deque()
        self._partial_units: dict[Unit, _PartialUnit] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writer")

    def __enter__(self) -> "Labeler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.drain()
        finally:
            self._writer.shutdown(wait=True)

    def expect(self, unit: Unit) -> None:
        """Add a unit to the expected ones."""
        self._expected.add(unit)

    def drain(self) -> None:
        """Wait until every submitted batch is labeled and every complete unit is written."""
        while self._in_flight:
            self._finish_oldest()
        while self._pending_writes:
            self._pending_writes.popleft().result()

    def expects(self, unit: Unit) -> bool:
        return unit in self._expected

    def submit(self, unit_batch: UnitBatch) -> None:
        """Label a batch, unless its unit is not expected. Raises errors of earlier batches.

        Raises RunError if the teacher's logits are NaN or too large.
        """
        if self._upload:
            self._upload.finish()  # the loader uses the memory again
        if unit_batch.views is None or not self.expects(unit_batch.unit):
            return
        self._upload = Upload(unit_batch.views.batch, self._device, self._copy_stream)
        logits = HostCopy(self._teacher(self._upload.ready().mixed(self._device)))
        self._in_flight.append((unit_batch.unit, unit_batch.views, logits))
        if len(self._in_flight) > 1:
            self._finish_oldest()

    def commit_empty(self, unit: Unit) -> None:
        """Write a unit of a shard without rows, which has no batches."""
        if self.expects(unit):
            self.cache.write(unit, _PartialUnit(self.cache, unit).columns)
            self._on_written(unit)

    def _finish_oldest(self) -> None:
        unit, views, copy = self._in_flight.popleft()
        logits = copy.wait().numpy()
        check_logits(self._teacher, views, logits)
        self._pending_writes.append(self._writer.submit(self._write, unit, views, logits))
        while self._pending_writes and (
            len(self._pending_writes) > MAX_PENDING_WRITES or self._pending_writes[0].done()
        ):
            self._pending_writes.popleft().result()

    def _write(self, unit: Unit, views: ShardViews, logits: NDArray[np.float32]) -> None:
        if unit not in self._partial_units:
            self._partial_units[unit] = _PartialUnit(self.cache, unit)
        partial = self._partial_units[unit]
        partial.put(views, logits)
        if partial.rows_left == 0:
            self.cache.write(unit, self._partial_units.pop(unit).columns)
            self._on_written(unit)


def check_logits(teacher: Teacher, views: ShardViews, logits: NDArray[np.float32]) -> None:
    """Raise RunError if logits (N, C) are NaN, or too large for float16."""
    valid = (np.abs(logits) <= LARGEST_LOGIT).all(axis=1)  # False for NaN
    if not valid.all():
        key = views.keys[int(valid.argmin())]
        raise RunError(
            f"teacher '{teacher.name}', view of '{key}' under seed {views.seed}: a logit is NaN or larger than "
            f"{LARGEST_LOGIT:,.0f}; its training diverged, choose another teacher"
        )


class _PartialUnit:
    """The encoded rows of a unit so far."""

    def __init__(self, cache: TargetCache, unit: Unit) -> None:
        self._encoding, self._seeds = cache.encoding, cache.layout.seeds(unit)
        rows = cache.rows[unit.shard]
        self.rows_left = len(self._seeds) * rows
        self._layout = self._encoding.columns(rows)
        self.columns: dict[str, Array] = {
            name: np.empty((len(self._seeds), *column.sizes), column.dtype)
            for name, column in self._layout.items()
        }

    def put(self, views: ShardViews, logits: NDArray[np.float32]) -> None:
        position, rows = views.seed - self._seeds.start, views.rows[: len(logits)]
        for name, values in self._encoding.encode(logits, views.digest[: len(logits)]).items():
            self.columns[name][position][self._layout[name].index_of(rows)] = values
        self.rows_left -= len(rows)
