"""Send mutated images and generated requests to a running server: no 5xx, no crash, no growth of memory.

    limbeck serve demo/bundle --port 8080 &
    python benchmarks/fuzz.py http://127.0.0.1:8080 --pid $! [--images 10000] [--examples 100]

Images of every supported type are mutated with a fixed seed (bits, bytes, cuts, splices, lengths) and sent to
/v1/classify, /v1/explain and /v2 infer. Half of the /v2 messages are mutated as well, including their JSON and
lengths. Then schemathesis (pip install schemathesis) generates requests from the OpenAPI document. Prints one
JSON line. The exit status is 1 if a check fails.
"""

import argparse
import asyncio
import json
import re
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import psutil
from PIL import Image

from teacher_cache.rng import generator

KINDS = {
    "JPEG": {},
    "PNG": {},
    "GIF": {},
    "WEBP": {},
    "TIFF": {"compression": "tiff_lzw"},
    "BMP": {},
    "JPEG2000": {},
    "AVIF": {},
    "PPM": {},
}
CONNECTIONS = 8
MAX_GROWTH = 1.15
"""Maximum ratio of the memory after the last image to the memory after a fifth of them, when caches are warm."""
_EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


@dataclass
class FuzzResults:
    """Results of all images."""

    images: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    """Requests with a 5xx, an invalid error or no response, with the number of the image to reproduce each."""
    warm_bytes: int = 0
    last_bytes: int = 0
    seconds: float = 0.0


def make_images() -> list[bytes]:
    """A valid image of each type, in gray, in color and with alpha if the type supports it."""
    pixels = generator("fuzz", "seed").integers(0, 256, (48, 64, 4), dtype=np.uint8)
    images = []
    for kind, options in KINDS.items():
        for mode in ("L", "RGB", "RGBA"):
            buffer = BytesIO()
            try:
                Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
            except OSError:  # the type does not support this mode
                continue
            images.append(buffer.getvalue())
    return images


def mutated_images(count: int) -> Iterator[bytes]:
    """`count` images with one to four mutations each; the same images in every run."""
    originals = make_images()
    for number in range(count):
        rng = generator("fuzz", number)
        image = bytearray(originals[rng.integers(len(originals))])
        for _ in range(rng.integers(1, 5)):
            _mutate(image, originals, rng)
        yield bytes(image)


def _mutate(image: bytearray, originals: list[bytes], rng: np.random.Generator) -> None:
    """Apply one mutation in place; half of them are within the first 64 bytes, the header."""
    if not image:
        return
    offset = int(rng.integers(min(len(image), 64) if rng.random() < 0.5 else len(image)))
    kind = rng.integers(7)
    if kind == 0:
        image[offset] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        image[offset : offset + 8] = rng.bytes(8)
    elif kind == 2:
        del image[offset:]
    elif kind == 3:
        del image[offset : offset + int(rng.integers(1, 33))]
    elif kind == 4:
        image[offset:offset] = image[offset : offset + int(rng.integers(1, 257))]
    elif kind == 5:
        other = originals[rng.integers(len(originals))]
        image[offset:] = other[min(offset, len(other)) :]
    else:
        edge = _EDGES[rng.integers(len(_EDGES))]
        image[offset : offset + 4] = struct.pack("<I" if rng.random() < 0.5 else ">I", edge)


async def send_all(url: str, count: int, pid: int | None) -> FuzzResults:
    """Send the images over several connections, alternating between three routes."""
    results, numbered, started = FuzzResults(), enumerate(mutated_images(count)), time.perf_counter()
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        model = (await client.get("/v1/model")).raise_for_status().json()["name"]
        routes = ("/v1/classify", "/v1/explain", f"/v2/models/{model}/infer")

        async def send_some() -> None:
            for number, image in numbered:
                await _send(client, routes[number % len(routes)], number, image, results)
                if results.images == count // 5 and pid:
                    results.warm_bytes = memory(pid)

        await asyncio.gather(*(send_some() for _ in range(CONNECTIONS)))
    results.seconds = time.perf_counter() - started
    results.last_bytes = memory(pid) if pid else 0
    return results


async def _send(client: httpx.AsyncClient, route: str, number: int, image: bytes, results: FuzzResults) -> None:
    headers = {}
    if route.startswith("/v2"):
        image, headers = _message(image, number)
    try:
        response = await client.post(route, content=image, headers=headers)
    except httpx.HTTPError as error:
        results.failures.append(f"image {number} to {route}: {type(error).__name__}")
    else:
        results.statuses[response.status_code] += 1
        if response.status_code >= 500 or not _is_one_line(response):
            results.failures.append(f"image {number} to {route}: {response.status_code} {response.text[:200]}")
    results.images += 1


def _message(image: bytes, number: int) -> tuple[bytes, dict[str, str]]:
    """Body and headers with an image as a binary tensor (Open Inference Protocol). Odd numbers are mutated."""
    size, length = len(image) + 4, "Inference-Header-Content-Length"
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
    head, rng = json.dumps({"inputs": [tensor]}).encode(), generator("fuzz", "message", number)
    body = bytearray(head + struct.pack("<I", size - 4) + image)
    if number % 2 == 0:
        return bytes(body), {length: str(len(head))}
    original = bytes(body)
    for _ in range(rng.integers(1, 4)):
        _mutate(body, [original], rng)
    header_length = len(head) + int(rng.integers(-3, 4)) * int(rng.integers(2))
    return bytes(body), {length: str(header_length)} if rng.random() < 0.9 else {}


def _is_one_line(response: httpx.Response) -> bool:
    """Whether an error is one line without a traceback, a file path or an address."""
    if response.status_code == 200:
        return True
    ((name, text),) = response.json().items()
    return name in ("detail", "error") and not re.search(
        r"\n|Traceback|\.py\b|0x[0-9a-f]{6}|/(work|tmp|usr|home)/", text
    )


def memory(pid: int) -> int:
    """Bytes (PSS) of a process and its descendants; shared pages count once."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(one.memory_full_info().pss for one in family)


def run_schemathesis(url: str, examples: int, phases: str) -> str:
    """Run schemathesis on the OpenAPI document; returns its output if a check fails, otherwise "".

    The unload route is excluded, and so are checks that reject what the document allows.
    """
    checks = (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
    )
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        f"{url}/openapi.json",
        "--no-color",
        "--seed",
        "1",
        "--max-examples",
        str(examples),
    ]
    command += ["--checks", ",".join(checks), "--phases", phases]
    command += ["--exclude-path", "/v2/repository/models/{name}/unload", "--generation-database", "none"]
    process = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    return "" if process.returncode == 0 else process.stdout + process.stderr


def main() -> None:
    """Fuzz the server at the given URL."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--pid", type=int, help="process id of the server, to measure its memory")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--examples", type=int, default=100, help="schemathesis examples per route; 0 to skip it")
    parser.add_argument("--phases", default="examples,coverage,fuzzing", help="schemathesis phases")
    options = parser.parse_args()
    results = asyncio.run(send_all(options.url, options.images, options.pid))
    grown = results.last_bytes / results.warm_bytes if results.warm_bytes else None
    errors = run_schemathesis(options.url, options.examples, options.phases) if options.examples else ""
    is_ready = httpx.get(f"{options.url}/readyz", timeout=60).status_code == 200
    line = asdict(results) | {
        "statuses": dict(sorted(results.statuses.items())),
        "grown": grown,
        "ready": is_ready,
    }
    print(json.dumps(line | {"schemathesis": "failed" if errors else "passed" if options.examples else "not run"}))
    print(errors, end="", file=sys.stderr)
    passed = results.images == options.images and not results.failures and not errors and is_ready
    sys.exit(0 if passed and (grown is None or grown < MAX_GROWTH) else 1)


if __name__ == "__main__":
    main()
