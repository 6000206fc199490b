"""Fixtures: real bundles, one image of every type, and real servers in separate processes."""

import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from student.bundle.bundle import Bundle, open_bundle
from teacher_cache.models.card import Card
from teacher_cache.models.network import create_network, normalize
from teacher_cache.models.spec import EvalSpec, NetworkSpec
from teacher_cache.models.weights import save_network, weights_sha256
from teacher_cache.rng import generator

CLASSES = ("cat", "dog", "owl")
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
WAIT_SECONDS = 60


@dataclass(frozen=True)
class Running:
    """A server that is ready, and its URL."""

    process: subprocess.Popen[str]
    url: str


def _save(
    folder: Path, name: str, heads: tuple[str, ...], fusion: str, seed: int = 7, args: dict[str, int] = TINY
) -> Path:
    spec = NetworkSpec(name=name, args=args)
    network = create_network(spec, len(CLASSES))
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(
            parameter, std=0.3, generator=generator
        )  # timm's default weights give nearly equal outputs for all images
    state = network.state_dict()
    card = Card(
        format=1,
        network=spec,
        eval=EvalSpec(size=args["img_size"], crop=0.875),
        classes=CLASSES,
        heads=heads,
        fusion=fusion,
        sha256=weights_sha256(state),
        accuracy=dict.fromkeys(heads, 33.3),
        recipe={},
    )
    save_network(folder, card, state)
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one torch thread, as a model worker does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with two heads, three classes and random weights."""
    folder = tmp_path_factory.mktemp("bundles") / "two"
    return _save(folder, "deit_tiny_distilled_patch16_224", ("class", "distill"), "softmax-sum")


@pytest.fixture(scope="session")
def one_headed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like bundle_folder, with only the class head."""
    return _save(tmp_path_factory.mktemp("bundles") / "one", "deit_tiny_patch16_224", ("class",), "class")


@pytest.fixture(scope="session")
def slow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like bundle_folder, with a larger network that needs tens of milliseconds an image."""
    folder = tmp_path_factory.mktemp("bundles") / "slow"
    args = {"img_size": 64, "patch_size": 4, "embed_dim": 192, "depth": 12, "num_heads": 3}
    return _save(folder, "deit_tiny_distilled_patch16_224", ("class", "distill"), "softmax-sum", args=args)


@pytest.fixture(scope="session")
def wild_folder(bundle: Bundle, pictures: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like bundle_folder, but its first logit overflows for some of the pictures only."""
    pixels = torch.from_numpy(np.stack([bundle.prepare(image) for image in pictures.values()]))
    network: Any = bundle.student.network
    with torch.inference_mode():
        images = normalize(pixels.permute(0, 3, 1, 2).float(), bundle.student.mean, bundle.student.std)
        seen = network.forward_features(images)[:, 0].abs()
    place = int(seen.median(dim=0).values.argmax())
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state["head.weight"][0] = 0
    state["head.weight"][0, place] = torch.finfo(torch.float32).max / max(float(seen[:, place].median()), 1)
    folder = tmp_path_factory.mktemp("bundles") / "wild"
    save_network(folder, bundle.card.model_copy(update={"sha256": weights_sha256(state)}), state)
    return folder


@pytest.fixture(scope="session")
def new_bundle() -> Callable[[Path, int], Path]:
    """Return new_bundle(folder, seed), which writes a bundle like bundle_folder with other weights."""
    return lambda folder, seed: _save(
        folder, "deit_tiny_distilled_patch16_224", ("class", "distill"), "softmax-sum", seed
    )


@pytest.fixture(scope="session")
def bundle(bundle_folder: Path) -> Bundle:
    return open_bundle(bundle_folder, torch.device("cpu"))


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.Popen[str]]:
    """Return a function that starts `limbeck ARGUMENTS` with piped standard output and error."""

    def start(*arguments: object) -> subprocess.Popen[str]:
        whole = [sys.executable, "-m", "server.cli", *map(str, arguments)]
        return subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")

    return start


@pytest.fixture(scope="session")
def start(command: Callable[..., subprocess.Popen[str]]) -> Iterator[Callable[..., Running]]:
    """Return a function that serves bundles on a free port and waits until they are ready.

    Servers that still run at the end of the session get SIGINT.
    """
    processes: list[subprocess.Popen[str]] = []

    def run(*arguments: object) -> Running:
        process = command("serve", *arguments, "--port", 0, "--device", "cpu")
        processes.append(process)
        assert process.stderr
        line = process.stderr.readline()
        found = re.search(r"(http://[\w.]+:\d+)", line)
        assert found, line + process.stderr.read()
        return Running(process, found.group(1))

    yield run
    time.sleep(0.5)  # a response arrives before its request has ended, and Ctrl-C reports requests that have not
    left = [process for process in processes if process.poll() is None]
    for process in left:
        process.send_signal(signal.SIGINT)
    assert [(process.communicate(timeout=WAIT_SECONDS)[1], process.returncode) for process in left] == [
        ("", 0)
    ] * len(left)


@pytest.fixture(scope="session")
def client(start: Callable[..., Running], bundle_folder: Path, one_headed_folder: Path) -> Iterator[httpx.Client]:
    """Client of a server with two models: the two-headed bundle, and the one-headed bundle as "one"."""
    running = start(bundle_folder, f"one@7={one_headed_folder}", "--deadline", 100)
    with httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def pictures() -> dict[str, bytes]:
    """One encoded image of each type that a camera, a scanner or a browser may send."""
    pixels = generator("pictures").integers(0, 256, (6, 8, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels).resize((80, 60), Image.Resampling.BICUBIC)
    deep = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    seen_through = photo.copy()
    seen_through.putalpha(photo.convert("L"))
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "jpeg": encode(photo, "JPEG"),
        "gray jpeg": encode(photo.convert("L"), "JPEG"),
        "cmyk jpeg": encode(photo.convert("CMYK"), "JPEG"),
        "rotated jpeg": encode(photo, "JPEG", exif=turned),
        "png": encode(photo, "PNG"),
        "rotated png": encode(photo, "PNG", exif=turned),
        "turned png": encode(photo.transpose(Image.Transpose.ROTATE_270), "PNG"),
        "palette png": encode(photo.quantize(16), "PNG", transparency=0),
        "16-bit png": encode(deep, "PNG"),
        "bilevel png": encode(photo.convert("1"), "PNG"),
        "alpha png": encode(seen_through, "PNG"),
        "gif": encode(photo, "GIF"),
        "webp": encode(photo, "WEBP"),
        "tiff": encode(photo, "TIFF"),
        "bmp": encode(photo, "BMP"),
        "one pixel": encode(photo.resize((1, 1)), "PNG"),
        "odd and wide": encode(photo.resize((301, 3)), "JPEG"),
        "odd and tall": encode(photo.resize((3, 301)), "PNG"),
        "a strip of 45,000 pixels": encode(photo.resize((1, 45_000)), "PNG"),
    }


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def vast() -> Callable[[int, int], bytes]:
    """Return vast(width, height): a PNG of a few bytes whose header has that width and height."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def make(width: int, height: int) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")

    return make
