"""Attention maps as pictures: what a model worker makes of one image for /v1/explain."""

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from server.errors import NoMapsError
from server.ipc.messages import Maps, Pixels, Task, TokenMap
from student.bundle.bundle import Bundle
from student.model.attention import Method, attention_maps, has_attention_maps

MIN_SIDE = 224
"""Pixels on each side of a picture, at least; what a network sees is enlarged by a whole number."""

_GAP, _TITLE = 8, 24  # pixels
_HAZE = 0.4  # how much of the picture is left under the heat


def draw_maps(method: Method, bundle: Bundle, pixels: Pixels, _task: Task) -> Maps:
    """The maps of both tokens, or of one. pixels: (S, S, 3) uint8, prepared. Raises NoMapsError."""
    if not has_attention_maps(bundle.student):
        raise NoMapsError("this model has no attention maps; ask one that is a vision transformer")
    prepared = torch.from_numpy(pixels)[None].to(bundle.device).permute(0, 3, 1, 2)
    maps = attention_maps(bundle.student, prepared, method)[0].numpy()
    scale = -(-MIN_SIDE // len(pixels))
    seen: Pixels = np.repeat(np.repeat(pixels[..., ::-1], scale, 0), scale, 1)  # cv2 has blue first
    pictures = [_heat(seen, one) for one in maps]
    tokens = {
        name: TokenMap(_png(picture), _peak(one), _half(one))
        for name, picture, one in zip(("class", "distill"), pictures, maps, strict=False)
    }
    captions = ["seen", *(f"{name} token" for name in tokens)]
    sheet = _beside([seen, *pictures], captions)
    return Maps(_png(seen), tokens, _png(sheet))


TASKS: dict[str, Callable[[Bundle, Pixels, Task], Any]] = {
    method: partial(draw_maps, method) for method in get_args(Method)
}
"""By kind: the attention's methods."""


def _heat(seen: Pixels, one: NDArray[np.float32]) -> Pixels:
    """A (rows, columns) map as colours over a (side, side, 3) BGR picture; the root shows the weak parts too."""
    side = seen.shape[:2][::-1]
    strength = np.clip(cv2.resize(np.sqrt(one / one.max()), side, interpolation=cv2.INTER_CUBIC), 0, 1)[..., None]
    colours = cv2.applyColorMap((255 * strength).astype(np.uint8), cv2.COLORMAP_INFERNO)
    grey = cv2.cvtColor(cv2.cvtColor(seen, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    heat: Pixels = np.clip(_HAZE * grey + (1 - _HAZE) * colours, 0, 255).astype(np.uint8)
    return heat


def _peak(one: NDArray[np.float32]) -> tuple[float, float]:
    rows, columns = one.shape
    row, column = divmod(int(one.argmax()), columns)
    return (column + 0.5) / columns, (row + 0.5) / rows


def _half(one: NDArray[np.float32]) -> float:
    falling = np.sort(one, axis=None)[::-1].cumsum()
    return float((np.searchsorted(falling, falling[-1] / 2) + 1) / one.size)


def _beside(pictures: list[Pixels], captions: list[str]) -> Pixels:
    """In a row, with its caption under each."""
    titled = [
        np.vstack((picture, _title(words, picture.shape[1])))
        for picture, words in zip(pictures, captions, strict=True)
    ]
    gap = np.full((len(titled[0]), _GAP, 3), 255, np.uint8)
    return np.hstack([part for picture in titled for part in (gap, picture)][1:])


def _title(words: str, width: int) -> Pixels:
    title = np.full((_TITLE, width, 3), 255, np.uint8)
    cv2.putText(title, words, (2, _TITLE - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return title


def _png(picture: Pixels) -> bytes:
    done, encoded = cv2.imencode(".png", picture)
    assert done, "a picture of bytes can be written"
    return encoded.tobytes()
