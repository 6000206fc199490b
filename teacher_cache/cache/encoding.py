"""How targets are stored: hard labels, the top k, or all logits; encode, decode, expand."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

STEP = 0.1
"""Nats: what one uint8 step below the top class stands for."""
LEVELS = 254
"""The most steps a uint8 counts; 255 is left to mean absent."""
MANTISSA = 6
"""Bits kept of a top-k value's ten: the zeros behind them take no space."""
RANK_STEP = 1e-4
"""Nats by which one rank stands below the one before it, where a step is too coarse to tell them apart."""


@dataclass(frozen=True)
class Column:
    """One array of the cache: its dimensions besides seed and shard, their sizes, the fill that cannot occur."""

    dims: tuple[str, ...]
    sizes: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: float

    def at(self, rows: slice | NDArray[np.int64]) -> tuple[Any, ...]:
        """The index of some rows in arrays whose last dimensions are this column's."""
        return (..., rows, *(slice(None) for _ in self.dims[self.dims.index("row") + 1 :]))


@dataclass(frozen=True)
class Encoding:
    """What is kept of a row of logits. kind: hard, topk or dense; k: classes kept by topk; values: float16, uint8.

    Top-k keeps each logit less the top one, and as `tail` the log-probability of all other classes together, which
    with them fixes every probability; a log-sum-exp's difference from their sum would drown in their rounding. As
    float16 these values have 6 bits of mantissa, as uint8 they are steps of 0.1 (benchmarks/targets.py: the cost).
    Dense as uint8: 254 even steps from the row's lowest logit (`offset`) to its highest, `scale` apart.
    """

    kind: str
    classes: int
    k: int
    values: str
    digest_bits: int

    def columns(self, rows: int) -> dict[str, Column]:
        """The arrays that hold the targets of `rows` rows, by name."""
        label = _label_type(self.classes)
        absent = int(np.iinfo(label).max)
        row = ("row",), (rows,)
        real = np.dtype(np.float32)
        value = np.dtype(self.values), (255 if self.values == "uint8" else np.nan)
        columns = {
            "hard": Column(*row, label, absent),
            "digest": Column(*row, np.dtype(f"uint{self.digest_bits}"), 0),
        }
        if self.kind == "topk":
            ranked = ("rank", "row"), (self.k, rows)
            columns["tail"] = Column(*row, real, np.nan)
            columns["index"] = Column(*ranked, label, absent)
            columns["value"] = Column(*ranked, *value)
        if self.kind == "dense":
            columns["logits"] = Column(("row", "class"), (rows, self.classes), *value)
            if self.values == "uint8":
                columns |= {"scale": Column(*row, real, np.nan), "offset": Column(*row, real, np.nan)}
        return columns

    def encode(self, logits: NDArray[np.float32], digest: NDArray[np.uint64]) -> dict[str, Array]:
        """logits: (R, C) float32, digest: (R,) uint64 -> the columns' arrays for these rows."""
        columns: dict[str, Array] = {
            "hard": logits.argmax(axis=1).astype(_label_type(self.classes)),
            "digest": (digest & np.uint64(2**self.digest_bits - 1)).astype(f"uint{self.digest_bits}"),
        }
        if self.kind == "topk":
            columns |= self._encode_top(logits)
        if self.kind == "dense":
            columns |= self._encode_all(logits)
        return columns

    def _encode_top(self, logits: NDArray[np.float32]) -> dict[str, Array]:
        order = np.argsort(-logits, axis=1, kind="stable")[:, : self.k]  # of equal ones the lower class first
        sure = logits - _log_sum_exp(logits.astype(np.float64))[:, None]
        value = np.take_along_axis(sure, order, axis=1)
        np.put_along_axis(sure, order, -np.inf, axis=1)
        tail = _log_sum_exp(sure)
        below = value[:, :1] - value
        steps = np.minimum(np.rint(below / STEP), LEVELS)
        return {
            "tail": tail.astype(np.float32),
            "index": order.T.astype(_label_type(self.classes)),
            "value": steps.T.astype(np.uint8) if self.values == "uint8" else 0 - _round(below.T),
        }

    def _encode_all(self, logits: NDArray[np.float32]) -> dict[str, Array]:
        if self.values == "float16":
            return {"logits": logits.astype(np.float16)}
        low, high = logits.min(axis=1), logits.max(axis=1)
        scale = np.maximum((high - low) / LEVELS, np.finfo(np.float32).tiny)
        return {
            "logits": np.rint((logits - low[:, None]) / scale[:, None]).astype(np.uint8),
            "scale": scale,
            "offset": low,
        }

    def rows(self, columns: Mapping[str, Array], rows: NDArray[np.int64]) -> dict[str, Array]:
        """Some rows of each column."""
        layout = self.columns(0)
        return {name: values[layout[name].at(rows)] for name, values in columns.items()}

    def expand(self, columns: Mapping[str, Array], tau: float) -> NDArray[np.float32]:
        """A full distribution (R, C) float32 at temperature tau from encoded rows.

        Top-k: the mass beyond the k classes, which is exact at tau 1, is spread evenly over the other classes; at
        other temperatures they stand at the logit that this even spread implies.
        Raises KeyError where only hard labels were kept.
        """
        scaled = (self._all(columns) if self.kind == "dense" else self._spread(columns)) / tau
        scaled -= scaled.max(axis=1, keepdims=True)
        weights = np.exp(scaled)
        distribution: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
        return distribution

    def _all(self, columns: Mapping[str, Array]) -> NDArray[np.float64]:
        logits = columns["logits"].astype(np.float64)
        if self.values == "uint8":
            logits = logits * columns["scale"][:, None] + columns["offset"][:, None]
        return logits

    def _spread(self, columns: Mapping[str, Array]) -> NDArray[np.float64]:
        index, value = columns["index"].T.astype(np.int64), columns["value"].T.astype(np.float64)
        if self.values == "uint8":
            value = -STEP * value - RANK_STEP * np.arange(self.k)
        tail = np.minimum(columns["tail"].astype(np.float64), -1e-7)[:, None]  # the classes kept keep some mass
        value += np.log1p(-np.exp(tail)) - np.logaddexp.reduce(value, axis=1)[:, None]
        each = np.minimum(tail - np.log(max(self.classes - self.k, 1)), value[:, :1])  # not by rounding
        logits = np.repeat(each, self.classes, axis=1)
        np.put_along_axis(logits, index, value, axis=1)
        return logits


def _log_sum_exp(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, C) -> (R,); twenty times faster than np.logaddexp.reduce. -inf for a row of nothing else."""
    highest = logits.max(axis=1)
    finite = np.where(np.isfinite(highest), highest, 0.0)
    with np.errstate(divide="ignore"):
        summed: NDArray[np.float64] = np.log(np.exp(logits - finite[:, None]).sum(axis=1)) + finite
    return summed


def _round(values: NDArray[np.float64]) -> NDArray[np.float16]:
    """To the nearest float16 of few bits. values: 0 or more, and finite in float16."""
    dropped = np.finfo(np.float16).nmant - MANTISSA
    bits = values.astype(np.float16).view(np.uint16)
    up = (bits & ((1 << dropped) - 1)) >= 1 << (dropped - 1)
    rounded: NDArray[np.float16] = (((bits >> dropped) + up) << dropped).astype(np.uint16).view(np.float16)
    return rounded


def _label_type(classes: int) -> np.dtype[Any]:
    """The smallest unsigned type that holds every class and, above them, "absent" (all ones)."""
    return np.dtype(np.min_scalar_type(classes))
