"""The batches of one training process in shared memory, which loader workers fill in place."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from student.data.batch import Batch
from teacher_cache.data.plan import PlanSpec
from teacher_cache.data.view_batch import batch_arrays
from teacher_cache.data.view_reader import DrawnViews, ViewIdentity
from teacher_cache.errors import LoaderError
from teacher_cache.loading.ring import ArraySpec, SharedRing

EXTRA_ROWS = 2
"""Rows beside a slice that may be partners of its samples."""


def step_arrays(spec: PlanSpec, streams: int, targets: dict[str, ArraySpec]) -> dict[str, ArraySpec]:
    """The arrays of a step. streams: of this process. targets: one row of each target."""
    repeats = spec.policy.aug_repeats
    views, extras = streams * spec.rows_per_slice * repeats, streams * EXTRA_ROWS * repeats
    arrays = batch_arrays(views, extras, spec.policy.size)
    return arrays | {name: ArraySpec((views, *row.shape), row.dtype) for name, row in targets.items()}


class StepRing:
    """One batch for each step in progress: the slices of this process's streams in order, then other partners.

    Only the first and the last row of a slice can have a partner outside it, so each slice has space for two other
    partners under each seed. Pixels of unused places are undefined, and no partner index refers to them.
    """

    def __init__(self, spec: PlanSpec, streams: int, targets: dict[str, ArraySpec]) -> None:
        """streams: of this process. targets: one row of "hard", or "hard" and "soft", or {} without a cache."""
        repeats = spec.policy.aug_repeats
        self._slice, self._extras = spec.rows_per_slice * repeats, EXTRA_ROWS * repeats
        self.views = streams * self._slice
        self.memory = SharedRing(step_arrays(spec, streams, targets))

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from the start of the loader. A later step replaces it."""
        return Batch(**self.memory.tensors(step))

    def slice(self, step: int, stream: int) -> "SliceWriter":
        """Writes the slice of a stream, numbered from 0 in this process."""
        first_extra = self.views + stream * self._extras
        return SliceWriter(self.memory.slot(step), stream * self._slice, first_extra, self._extras)


class SliceWriter:
    """Writes views and targets of one stream into a batch, in the order of the calls."""

    def __init__(self, arrays: dict[str, NDArray[Any]], sample: int, extra: int, extras: int) -> None:
        self._arrays, self._sample, self._extra, self._end = arrays, sample, extra, extra + extras
        self.written = 0

    def render(self, drawn: DrawnViews) -> ViewIdentity:
        """Render views into their places, and write the fields that mix them."""
        pixels, (samples, extras) = self._arrays["pixels"], self._places(drawn)
        identity = drawn.render(pixels[samples], pixels[extras])
        for name, values in drawn.fields.items():
            self._arrays[name][samples] = values
        partner = drawn.fields["partner"]
        self._arrays["partner"][samples] = np.where(
            partner < drawn.samples, samples.start + partner, extras.start + partner - drawn.samples
        )
        self._sample, self._extra = samples.stop, extras.stop
        self.written += drawn.samples
        return identity

    def put_targets(self, hard: Tensor, soft: Tensor | None) -> None:
        """Write the targets (N,) and (N, C) of the samples that were rendered last."""
        samples = slice(self._sample - len(hard), self._sample)
        self._arrays["hard"][samples] = hard.numpy()
        if soft is not None:
            self._arrays["soft"][samples] = soft.numpy()

    def _places(self, drawn: DrawnViews) -> tuple[slice, slice]:
        samples = slice(self._sample, self._sample + drawn.samples)
        extras = slice(self._extra, self._extra + drawn.extras)
        if extras.stop > self._end:
            raise LoaderError("a slice has more partners outside it than the plan allows; report this as a bug")
        return samples, extras
