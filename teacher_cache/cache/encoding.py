"""How targets are stored: hard labels, the top k, or all logits; encode, decode, expand."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

UINT8_STEP_NATS = 0.1
"""Nats: what one uint8 step below the top class stands for."""
MAX_STEPS = 254
"""The most steps a uint8 counts; 255 is left to mean absent."""
MANTISSA_BITS = 6
"""Bits kept of a top-k value's ten: the zeros behind them take no space."""
RANK_STEP_NATS = 1e-4
"""Nats by which one rank stands below the one before it, where a step is too coarse to tell them apart."""


@dataclass(frozen=True)
class Column:
    """One array of the cache: its dimensions besides seed and shard, their sizes, the fill that cannot occur."""

    dims: tuple[str, ...]
    sizes: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: float

    def index_of(self, rows: slice | NDArray[np.int64]) -> tuple[Any, ...]:
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
        row_dims = ("row",), (rows,)
        float32 = np.dtype(np.float32)
        value_type = np.dtype(self.values), (255 if self.values == "uint8" else np.nan)
        columns = {
            "hard": Column(*row_dims, label, absent),
            "digest": Column(*row_dims, np.dtype(f"uint{self.digest_bits}"), 0),
        }
        if self.kind == "topk":
            ranked_dims = ("rank", "row"), (self.k, rows)
            columns["tail"] = Column(*row_dims, float32, np.nan)
            columns["index"] = Column(*ranked_dims, label, absent)
            columns["value"] = Column(*ranked_dims, *value_type)
        if self.kind == "dense":
            columns["logits"] = Column(("row", "class"), (rows, self.classes), *value_type)
            if self.values == "uint8":
                columns |= {
                    "scale": Column(*row_dims, float32, np.nan),
                    "offset": Column(*row_dims, float32, np.nan),
                }
        return columns

    def encode(self, logits: NDArray[np.float32], digest: NDArray[np.uint64]) -> dict[str, Array]:
        """logits: (R, C) float32, digest: (R,) uint64 -> the columns' arrays for these rows."""
        columns: dict[str, Array] = {
            "hard": logits.argmax(axis=1).astype(_label_type(self.classes)),
            "digest": (digest & np.uint64(2**self.digest_bits - 1)).astype(f"uint{self.digest_bits}"),
        }
        if self.kind == "topk":
            columns |= self._encode_topk(logits)
        if self.kind == "dense":
            columns |= self._encode_dense(logits)
        return columns

    def _encode_topk(self, logits: NDArray[np.float32]) -> dict[str, Array]:
        order = np.argsort(-logits, axis=1, kind="stable")[:, : self.k]  # of equal ones the lower class first
        log_probability = logits - _log_sum_exp(logits.astype(np.float64))[:, None]
        value = np.take_along_axis(log_probability, order, axis=1)
        np.put_along_axis(log_probability, order, -np.inf, axis=1)
        tail = _log_sum_exp(log_probability)
        gaps = value[:, :1] - value
        steps = np.minimum(np.rint(gaps / UINT8_STEP_NATS), MAX_STEPS)
        return {
            "tail": tail.astype(np.float32),
            "index": order.T.astype(_label_type(self.classes)),
            "value": steps.T.astype(np.uint8) if self.values == "uint8" else 0 - _round_mantissa(gaps.T),
        }

    def _encode_dense(self, logits: NDArray[np.float32]) -> dict[str, Array]:
        if self.values == "float16":
            return {"logits": logits.astype(np.float16)}
        low, high = logits.min(axis=1), logits.max(axis=1)
        scale = np.maximum((high - low) / MAX_STEPS, np.finfo(np.float32).tiny)
        return {
            "logits": np.rint((logits - low[:, None]) / scale[:, None]).astype(np.uint8),
            "scale": scale,
            "offset": low,
        }

    def select_rows(self, columns: Mapping[str, Array], rows: NDArray[np.int64]) -> dict[str, Array]:
        """Some rows of each column."""
        declared = self.columns(0)
        return {name: values[declared[name].index_of(rows)] for name, values in columns.items()}

    def expand(self, columns: Mapping[str, Array], tau: float) -> NDArray[np.float32]:
        """A full distribution (R, C) float32 at temperature tau from encoded rows.

        Top-k: the mass beyond the k classes, which is exact at tau 1, is spread evenly over the other classes; at
        other temperatures they stand at the logit that this even spread implies.
        Raises KeyError where only hard labels were kept.
        """
        scaled = (self._dense_logits(columns) if self.kind == "dense" else self._topk_logits(columns)) / tau
        scaled -= scaled.max(axis=1, keepdims=True)
        weights = np.exp(scaled)
        distribution: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
        return distribution

    def _dense_logits(self, columns: Mapping[str, Array]) -> NDArray[np.float64]:
        logits = columns["logits"].astype(np.float64)
        if self.values == "uint8":
            logits = logits * columns["scale"][:, None] + columns["offset"][:, None]
        return logits

    def _topk_logits(self, columns: Mapping[str, Array]) -> NDArray[np.float64]:
        index, value = columns["index"].T.astype(np.int64), columns["value"].T.astype(np.float64)
        if self.values == "uint8":
            value = -UINT8_STEP_NATS * value - RANK_STEP_NATS * np.arange(self.k)
        tail = np.minimum(columns["tail"].astype(np.float64), -1e-7)[:, None]  # the classes kept keep some mass
        value += np.log1p(-np.exp(tail)) - np.logaddexp.reduce(value, axis=1)[:, None]
        other = np.minimum(tail - np.log(max(self.classes - self.k, 1)), value[:, :1])  # not by rounding
        logits = np.repeat(other, self.classes, axis=1)
        np.put_along_axis(logits, index, value, axis=1)
        return logits


def _log_sum_exp(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, C) -> (R,); twenty times faster than np.logaddexp.reduce. -inf for a row of nothing else."""
    highest = logits.max(axis=1)
    finite = np.where(np.isfinite(highest), highest, 0.0)
    with np.errstate(divide="ignore"):
        result: NDArray[np.float64] = np.log(np.exp(logits - finite[:, None]).sum(axis=1)) + finite
    return result


def _round_mantissa(values: NDArray[np.float64]) -> NDArray[np.float16]:
    """To the nearest float16 of few bits. values: 0 or more, and finite in float16."""
    dropped = np.finfo(np.float16).nmant - MANTISSA_BITS
    bits = values.astype(np.float16).view(np.uint16)
    round_up = (bits & ((1 << dropped) - 1)) >= 1 << (dropped - 1)
    rounded: NDArray[np.float16] = (((bits >> dropped) + round_up) << dropped).astype(np.uint16).view(np.float16)
    return rounded


def _label_type(classes: int) -> np.dtype[Any]:
    """The smallest unsigned type that holds every class and, above them, "absent" (all ones)."""
    return np.dtype(np.min_scalar_type(classes))
