"""Attention maps on their way from a model worker to the serving process. Nothing here needs torch."""

from dataclasses import dataclass
from typing import Literal

MethodName = Literal["last-layer", "rollout"]


@dataclass(frozen=True)
class TokenMap:
    """Where one token looks. png: the heat over the picture in grey.

    peak: (x, y) of the patch most looked at, 0..1 from the left and the top. half: the smallest share of the
    patches that gets half of the attention, 0..1.
    """

    png: bytes
    peak: tuple[float, float]
    half: float


@dataclass(frozen=True)
class Maps:
    """seen: PNG of what the network saw. tokens: by "class" and, with two heads, "distill". sheet: PNG of all."""

    seen: bytes
    tokens: dict[str, TokenMap]
    sheet: bytes
