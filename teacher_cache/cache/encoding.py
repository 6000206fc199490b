"""Encodings of targets: hard labels, top-k logits, or all logits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

UINT8_STEP_NATS = 0.1
"""Size of one uint8 step below the top logit (top-k)."""
MAX_STEPS = 254
"""Largest number of uint8 steps; 255 means absent."""
MANTISSA_BITS = 6
"""Mantissa bits kept of a top-k float16 value (of ten); the zero bits compress to nothing."""
RANK_STEP_NATS = 1e-4
"""Difference between consecutive ranks added on decoding uint8 values, so that ranks in one step stay ordered."""


@dataclass(frozen=True)
class Column:
    """One array of the cache, without its dimensions seed and shard. fill: the value that means absent."""

    dims: tuple[str, ...]
    sizes: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: float

    def index_of(self, rows: slice | NDArray[np.int64]) -> tuple[Any, ...]:
        """The index that selects rows in an array whose last dimensions are `dims`."""
        return (..., rows, *(slice(None) for _ in self.dims[self.dims.index("row") + 1 :]))


@dataclass(frozen=True)
class Encoding:
    """How a row of logits is stored.

    kind: hard, topk or dense. k: number of classes that topk stores. values: float16 or uint8.
    topk: k logits minus the top logit, and `tail`, the log-probability of all other classes together. Both fix the
    probabilities of the k classes. With a log-sum-exp instead of `tail`, rounding errors would exceed the tail.
    topk values: float16 with 6 bits of mantissa, or uint8 steps of 0.1 (benchmarks/targets.py measures the error).
    dense values: float16, or uint8 in 254 equal steps of `scale` from the row's lowest logit, `offset`.
    """

    kind: str
    classes: int
    k: int
    values: str
    digest_bits: int

    def columns(self, rows: int) -> dict[str, Column]:
        """Name -> array description for the targets of `rows` rows."""
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
        """Encode logits (R, C) float32 and digests (R,) uint64 into one array for each column."""
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
        order = np.argsort(-logits, axis=1, kind="stable")[:, : self.k]  # equal logits: lower class first
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
        """Select rows (N,) of each column."""
        declared = self.columns(0)
        return {name: values[declared[name].index_of(rows)] for name, values in columns.items()}

    def expand(self, columns: Mapping[str, Array], tau: float) -> NDArray[np.float32]:
        """Expand encoded rows to a distribution (R, C) float32 at temperature tau; each row sums to 1.

        topk: the tail's mass is divided equally among the other classes, which is exact at tau 1. At other
        temperatures these classes have the logit that this implies.
        Raises KeyError if only hard labels are stored.
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
        tail = np.minimum(columns["tail"].astype(np.float64), -1e-7)[:, None]  # leaves some mass for the k classes
        value += np.log1p(-np.exp(tail)) - np.logaddexp.reduce(value, axis=1)[:, None]
        # at most the top logit: rounding must not make another class the most likely
        other = np.minimum(tail - np.log(max(self.classes - self.k, 1)), value[:, :1])
        logits = np.repeat(other, self.classes, axis=1)
        np.put_along_axis(logits, index, value, axis=1)
        return logits


def _log_sum_exp(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, C) -> (R,); -inf for a row of only -inf. Twenty times faster than np.logaddexp.reduce."""
    highest = logits.max(axis=1)
    finite = np.where(np.isfinite(highest), highest, 0.0)
    with np.errstate(divide="ignore"):
        result: NDArray[np.float64] = np.log(np.exp(logits - finite[:, None]).sum(axis=1)) + finite
    return result


def _round_mantissa(values: NDArray[np.float64]) -> NDArray[np.float16]:
    """Round to float16 with MANTISSA_BITS bits of mantissa. values: >= 0 and finite in float16."""
    dropped = np.finfo(np.float16).nmant - MANTISSA_BITS
    bits = values.astype(np.float16).view(np.uint16)
    round_up = (bits & ((1 << dropped) - 1)) >= 1 << (dropped - 1)
    rounded: NDArray[np.float16] = (((bits >> dropped) + round_up) << dropped).astype(np.uint16).view(np.float16)
    return rounded


def _label_type(classes: int) -> np.dtype[Any]:
    """The smallest unsigned dtype that holds every class and "absent" (all ones)."""
    return np.dtype(np.min_scalar_type(classes))
