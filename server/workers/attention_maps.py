"""Attention maps as pictures, for /v1/explain."""

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
"""Minimum height and width of a picture, in pixels. The network's input is enlarged by an integer factor."""

_GAP, _CAPTION_HEIGHT = 8, 24  # pixels
_IMAGE_WEIGHT = 0.4  # of the gray image under the heat map


def draw_maps(method: Method, bundle: Bundle, pixels: Pixels, _task: Task) -> Maps:
    """Draw the attention maps of all tokens. pixels: (S, S, 3) uint8, prepared. Raises NoMapsError."""
    if not has_attention_maps(bundle.student):
        raise NoMapsError(
            f"model '{bundle.card.network.name}' has no attention maps; use a model that is a vision transformer"
        )
    batch = torch.from_numpy(pixels)[None].to(bundle.device).permute(0, 3, 1, 2)
    maps = attention_maps(bundle.student, batch, method)[0].numpy()
    scale = -(-MIN_SIDE // len(pixels))
    image: Pixels = np.repeat(np.repeat(pixels[..., ::-1], scale, 0), scale, 1)  # OpenCV's channel order is BGR
    pictures = [_heat_map(image, attention) for attention in maps]
    tokens = {
        name: TokenMap(_png(picture), _peak(attention), _half(attention))
        for name, picture, attention in zip(("class", "distill"), pictures, maps, strict=False)
    }
    captions = ["seen", *(f"{name} token" for name in tokens)]
    return Maps(_png(image), tokens, _png(_sheet([image, *pictures], captions)))


TASKS: dict[str, Callable[[Bundle, Pixels, Task], Any]] = {
    method: partial(draw_maps, method) for method in get_args(Method)
}
"""Functions for the kinds of tasks other than classification: one for each method of computing attention."""


def _heat_map(image: Pixels, attention: NDArray[np.float32]) -> Pixels:
    """Draw a (rows, columns) map in color over a (side, side, 3) BGR image, on a square-root scale."""
    side = image.shape[:2][::-1]
    scaled = cv2.resize(np.sqrt(attention / attention.max()), side, interpolation=cv2.INTER_CUBIC)
    strength = np.clip(scaled, 0, 1)[..., None]
    colors = cv2.applyColorMap((255 * strength).astype(np.uint8), cv2.COLORMAP_INFERNO)
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    heat: Pixels = np.clip(_IMAGE_WEIGHT * gray + (1 - _IMAGE_WEIGHT) * colors, 0, 255).astype(np.uint8)
    return heat


def _peak(attention: NDArray[np.float32]) -> tuple[float, float]:
    rows, columns = attention.shape
    row, column = divmod(int(attention.argmax()), columns)
    return (column + 0.5) / columns, (row + 0.5) / rows


def _half(attention: NDArray[np.float32]) -> float:
    cumulative = np.sort(attention, axis=None)[::-1].cumsum()
    return float((np.searchsorted(cumulative, cumulative[-1] / 2) + 1) / attention.size)


def _sheet(pictures: list[Pixels], captions: list[str]) -> Pixels:
    """Pictures side by side, each above its caption."""
    columns = [
        np.vstack((picture, _caption(text, picture.shape[1])))
        for picture, text in zip(pictures, captions, strict=True)
    ]
    gap = np.full((len(columns[0]), _GAP, 3), 255, np.uint8)
    return np.hstack([part for column in columns for part in (gap, column)][1:])


def _caption(text: str, width: int) -> Pixels:
    caption = np.full((_CAPTION_HEIGHT, width, 3), 255, np.uint8)
    origin = (2, _CAPTION_HEIGHT - 8)
    cv2.putText(caption, text, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return caption


def _png(picture: Pixels) -> bytes:
    is_encoded, data = cv2.imencode(".png", picture)
    assert is_encoded, "uint8 pixels can be encoded as PNG"
    return data.tobytes()
