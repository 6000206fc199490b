"""The evaluation transform: resize and center crop."""

import math

import numpy as np
import simplejpeg

from teacher_cache.views.decode import Pixels, decode
from teacher_cache.views.render import resize


def prepare(data: bytes, size: int, crop: float, interpolation: str = "bicubic") -> Pixels:
    """Encoded bytes to what evaluation and the server see: `decode`, then `centre_crop`.

    A JPEG of more than four times the short side wanted (12 megapixels are some 12 times) is decoded at a fraction
    of its size, twice that side or more. The pixels then differ by 0.3 of 255 in the mean. Raises ImageError.
    """
    short = math.floor(size / crop)
    least = 0
    if data[:2] == b"\xff\xd8":
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            least = 2 * short if min(height, width) > 4 * short else 0
        except ValueError:
            pass  # decode says what is wrong
    return center_crop(decode(data, least), size, crop, interpolation)


def center_crop(image: Pixels, size: int, crop: float, interpolation: str = "bicubic") -> Pixels:
    """What evaluation and the server see: short side to size / crop, then the middle, as timm does.

    Returns (size, size, 3) uint8. Of a strip longer than 16 times its width only the middle is looked at.
    """
    image = _middle(image)
    height, width = image.shape[:2]
    short = math.floor(size / crop)
    if height <= width:
        height, width = short, max(int(short * width / height), short)
    else:
        height, width = max(int(short * height / width), short), short
    resized = resize(image, height, width, interpolation)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return np.ascontiguousarray(resized[top : top + size, left : left + size])


def _middle(image: Pixels) -> Pixels:
    height, width = image.shape[:2]
    longest = 16 * min(height, width)
    top, left = max(height - longest, 0) // 2, max(width - longest, 0) // 2
    return image[top : top + longest, left : left + longest]
