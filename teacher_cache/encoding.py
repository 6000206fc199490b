"""How targets are stored: hard labels, the top k logits, or all of them; encode, decode, expand."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Column:
    """One array of the cache: its dimensions besides seed and shard, their sizes (row is left to the cache)."""

    dims: tuple[str, ...]
    sizes: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: float


@dataclass(frozen=True)
class Encoding:
    """What is kept of a row of logits. kind: hard, topk or dense; k: classes kept by topk.

    Top-k keeps log-probabilities (logits less the row's log-sum-exp), and as `tail` the log-probability of all
    other classes together: what is left after a sum of float16 values would drown in their rounding.
    """

    kind: str
    classes: int
    k: int
    digest_bits: int

    def columns(self, rows: int) -> dict[str, Column]:
        """The arrays that hold the targets of `rows` rows, by name."""
        label = _label_type(self.classes)
        absent = int(np.iinfo(label).max)
        row = ("row",), (rows,)
        columns = {
            "hard": Column(*row, label, absent),
            "digest": Column(*row, np.dtype(f"uint{self.digest_bits}"), 0),
        }
        if self.kind == "topk":
            columns["tail"] = Column(*row, np.dtype(np.float32), np.nan)
            ranked = ("rank", "row"), (self.k, rows)
            columns["index"] = Column(*ranked, label, absent)
            columns["value"] = Column(*ranked, np.dtype(np.float16), np.nan)
        if self.kind == "dense":
            columns["logits"] = Column(("row", "class"), (rows, self.classes), np.dtype(np.float16), np.nan)
        return columns

    def encode(self, logits: NDArray[np.float32], digest: NDArray[np.uint64]) -> dict[str, Array]:
        """logits: (R, C) float32, digest: (R,) uint64 -> the columns' arrays for these rows."""
        label = _label_type(self.classes)
        columns: dict[str, Array] = {
            "hard": logits.argmax(axis=1).astype(label),
            "digest": (digest & np.uint64(2**self.digest_bits - 1)).astype(f"uint{self.digest_bits}"),
        }
        if self.kind == "hard":
            return columns
        if self.kind == "dense":
            columns["logits"] = logits.astype(np.float16)
            return columns
        order = np.argsort(-logits, axis=1, kind="stable")[:, : self.k]
        sure = logits - np.logaddexp.reduce(logits.astype(np.float64), axis=1)[:, None]
        columns["index"] = order.T.astype(label)
        columns["value"] = np.take_along_axis(sure, order, axis=1).T.astype(np.float16)
        np.put_along_axis(sure, order, -np.inf, axis=1)
        columns["tail"] = np.logaddexp.reduce(sure, axis=1).astype(np.float32)
        return columns

    def rows(self, columns: Mapping[str, Array], rows: NDArray[np.int64]) -> dict[str, Array]:
        """Some rows of each column."""
        return {
            name: values[:, rows] if name in ("index", "value") else values[rows]
            for name, values in columns.items()
        }

    def expand(self, columns: Mapping[str, Array], tau: float) -> NDArray[np.float32]:
        """A full distribution (R, C) float32 at temperature tau from encoded rows.

        Top-k: the mass beyond the k classes, which is exact at tau 1, is spread evenly over the other classes; at
        other temperatures they stand at the logit that this even spread implies.
        Raises KeyError where only hard labels were kept.
        """
        logits = columns["logits"].astype(np.float64) if self.kind == "dense" else self._spread(columns)
        scaled = logits / tau
        scaled -= scaled.max(axis=1, keepdims=True)
        weights = np.exp(scaled)
        distribution: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
        return distribution

    def _spread(self, columns: Mapping[str, Array]) -> NDArray[np.float64]:
        index, value = columns["index"].T.astype(np.int64), columns["value"].T.astype(np.float64)
        tail = np.minimum(columns["tail"].astype(np.float64), -1e-7)[:, None]  # the classes kept keep some mass
        value += np.log1p(-np.exp(tail)) - np.logaddexp.reduce(value, axis=1)[:, None]
        each = tail - np.log(max(self.classes - self.k, 1))
        logits = np.repeat(np.minimum(each, value[:, -1:]), self.classes, axis=1)
        np.put_along_axis(logits, index, value, axis=1)
        return logits


def _label_type(classes: int) -> np.dtype[Any]:
    """The smallest unsigned type that holds every class and, above them, "absent" (all ones)."""
    return np.dtype(np.min_scalar_type(classes))
