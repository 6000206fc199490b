"""The decoded cache that processes share: the same views, never a partial or damaged file, within its limit."""

import contextlib
import errno
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from facts import assert_facts
from other_user import by_another_user, shared_folder
from PIL import Image

from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.data.index import ShardIndex, SkippedSample, load_index
from teacher_cache.data.shards import read_shard, with_decoded_cache
from teacher_cache.data.view_reader import ShardViews, ViewReader
from teacher_cache.disk_cache.decoded_cache import (
    DecodedCache,
    DecodedCacheSpec,
    DecodedImages,
    open_decoded_cache,
)
from teacher_cache.disk_cache.pixel_file import ALIGNMENT, file_bytes
from teacher_cache.errors import ImageError, ShardError
from teacher_cache.labeling.job import build
from teacher_cache.recipe import CacheRecipe
from teacher_cache.views import decode as decode_module
from teacher_cache.views.decode import Pixels, count_pixels, decode
from teacher_cache.views.policy import ViewPolicy

GIB = 2**30
ROWS, SIDE = 5, 16
FILE_BYTES = file_bytes([3 * SIDE * SIDE] * ROWS)

WRITER = """
import os, signal, sys
from pathlib import Path
from teacher_cache.disk_cache.decoded_cache import DecodedCache, DecodedImages
from teacher_cache.views.decode import count_pixels, decode

folder, images, killed = Path(sys.argv[1]), [path.read_bytes() for path in sorted(Path(sys.argv[2]).iterdir())], []

def decode_slowly(data):
    with open(sys.argv[3], "a") as file:
        file.write(".")
    killed.append(data)
    if sys.argv[4] == "killed" and len(killed) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(data)

cache = DecodedCache(str(folder), 2**30, ("0" * 32,), "machine.decoded_cache_gib", True)
reader = DecodedImages(cache, decode_slowly, count_pixels, 1)
print("ready", flush=True)
sys.stdin.readline()
print(sum(int(reader.image(0, row, lambda: images).sum()) for row in range(len(images))))
"""


def encoded(shard: int) -> list[bytes]:
    """The PNGs of one shard."""
    images = []
    for row in range(ROWS):
        file = io.BytesIO()
        pixels = np.random.default_rng((shard, row)).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        images.append(file.getvalue())
    return images


class Reader:
    """Reads the shards of a data set through a cache, and counts the images that it decodes."""

    def __init__(
        self, folder: Path, shards: Sequence[int] = (0,), limit: int = GIB, is_writable: bool = True
    ) -> None:
        names = tuple(f"{shard:032x}" for shard in shards)
        cache = DecodedCache(str(folder), limit, names, "machine.decoded_cache_gib", is_writable)
        self.shards, self._decodings = shards, list[bytes]()
        decodings = self._decodings  # a reference to self would keep the files open until garbage is collected

        def decode_and_count(data: bytes) -> Pixels:
            decodings.append(data)
            return decode(data)

        self.images = DecodedImages(cache, decode_and_count, count_pixels, open_shards=1)

    @property
    def decoded(self) -> int:
        return len(self._decodings)

    def read(self, number: int = 0) -> int:
        """Check all rows of a shard that are in the cache; returns their number."""
        found, images = 0, encoded(self.shards[number])
        for row, image in enumerate(images):
            pixels = self.images.image(number, row, lambda: images)
            if pixels is not None:
                assert np.array_equal(pixels, decode(image)) and not pixels.flags.writeable
                assert not pixels.flags.owndata and pixels.ctypes.data % ALIGNMENT == 0
                found += 1
        return found


def held(folder: Path) -> dict[str, int]:
    """The size of each file of pixels, by name without the leading zeros."""
    return {path.name.lstrip("0"): path.stat().st_size for path in folder.glob("*.pixels*")}


def all_views(index: ShardIndex, policy: ViewPolicy) -> list[ShardViews]:
    reader = ViewReader(index, policy)
    return [
        views
        for number, shard in enumerate(index.shards)
        for views in reader.read(number, range(shard.rows), (0, 3))
    ]


@pytest.mark.parametrize("remote", [False, True])
def test_views_and_digests_are_the_same_with_and_without_it(
    remote: bool, shards: ShardIndex, shards_in_bucket: str, cache: TargetCache, tmp_path: Path
) -> None:
    index = load_index(shards_in_bucket) if remote else shards
    decoded = with_decoded_cache(index, DecodedCacheSpec(decoded_cache=str(tmp_path)), "machine")
    without = all_views(shards, cache.manifest.policy)
    for _ in range(2):
        for one, other in zip(without, all_views(decoded, cache.manifest.policy), strict=True):
            assert one.keys == other.keys and (one.digest == other.digest).all()
            assert (one.batch.pixels == other.batch.pixels).all()
    assert len(held(tmp_path)) == 3


def test_a_build_with_it_equals_one_without(
    cache: TargetCache,
    cache_recipe: CacheRecipe,
    changed: Callable[..., CacheRecipe],
    assert_same: Callable[[TargetCache, TargetCache], None],
    tmp_path: Path,
) -> None:
    for name in ("a.zarr", "b.zarr"):
        job = {"decoded_cache": str(tmp_path / "decoded"), "workers": 2}
        assert_same(build(changed(cache_recipe, tmp_path / name, job=job)), cache)
        assert len(held(tmp_path / "decoded")) == 3


def test_images_are_decoded_on_first_use_only(tmp_path: Path) -> None:
    first, second = Reader(tmp_path, (0, 1)), Reader(tmp_path, (0, 1))
    for reader in (first, second, first):
        assert reader.read(0) == reader.read(1) == ROWS
    assert (first.decoded, second.decoded) == (2 * ROWS, 0)
    assert held(tmp_path) == {".pixels": FILE_BYTES, "1.pixels": FILE_BYTES}


def test_the_file_of_a_shard_depends_on_its_contents_rows_and_decoder(
    shards: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name(index: ShardIndex) -> str:
        decoded = with_decoded_cache(index, DecodedCacheSpec(decoded_cache=str(tmp_path)), "job").decoded
        assert decoded
        return decoded.names[0]

    first, others = shards.shards[0], shards.shards[1:]
    skipped = replace(first, skipped=(SkippedSample(1, "key", "broken"),))
    names = {
        name(shards),
        name(replace(shards, shards=(skipped, *others))),
        name(replace(shards, shards=(replace(first, md5="0" * 32), *others))),
        name(replace(shards, format=replace(shards.format, dotted_keys=True))),
    }
    same = name(replace(shards, folder="elsewhere", format=replace(shards.format, label="json:label")))
    assert len(names) == 4 and same in names
    monkeypatch.setattr(decode_module, "DECODER_VERSION", 0)
    assert name(shards) not in names


def test_an_image_that_cannot_be_decoded_is_an_error_only_if_it_is_needed(
    shards: ShardIndex, cache: TargetCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = read_shard(shards, 0)[3]

    def decode_others(data: bytes) -> Pixels:
        if data == broken.image:
            raise ImageError("cannot be decoded")
        return decode(data)

    monkeypatch.setattr("teacher_cache.data.view_reader.decode", decode_others)
    index = with_decoded_cache(shards, DecodedCacheSpec(decoded_cache=str(tmp_path)), "machine")
    policy = cache.manifest.policy.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
    for _ in range(2):
        reader = ViewReader(index, policy)
        assert len(reader.read(0, [2, 4], [0])[0].rows) == 2
        with pytest.raises(ShardError) as caught:
            reader.read(0, [3], [0])
        assert_facts(caught.value, f"'{shards.url(0)}'", f"'{broken.key}'")


def start_writer(folder: Path, source: Path, log: Path, mode: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(folder), str(source), str(log), mode]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with the images of shard 0."""
    folder = tmp_path / "source"
    folder.mkdir()
    for row, image in enumerate(encoded(0)):
        (folder / str(row)).write_bytes(image)
    return folder


def test_a_killed_writer_leaves_nothing_that_is_taken_for_whole(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "decoded"
    with start_writer(folder, source, tmp_path / "log", "killed") as writer:
        writer.communicate("go\n")
    assert writer.returncode == -signal.SIGKILL
    assert held(folder) == {".pixels-half": FILE_BYTES}
    other = Reader(folder, (1,), limit=FILE_BYTES)
    assert other.read() == ROWS and held(folder) == {"1.pixels": FILE_BYTES}
    reader = Reader(folder)
    assert reader.read() == ROWS and reader.decoded == ROWS


def test_two_processes_decode_each_image_once(tmp_path: Path, source: Path) -> None:
    folder, log = tmp_path / "decoded", tmp_path / "log"
    writers = [start_writer(folder, source, log, "whole") for _ in range(2)]
    for writer in writers:
        assert writer.stdout and writer.stdout.readline() == "ready\n"
    for writer in writers:
        print("go", file=writer.stdin, flush=True)
    total = sum(int(decode(image).sum()) for image in encoded(0))
    assert [writer.communicate()[0] for writer in writers] == [f"{total}\n"] * 2
    assert log.read_text() == "." * ROWS


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGES = {
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "empty": lambda data: b"",
    "foreign": lambda data: b"something else" * 1000,
    "magic": lambda data: flip(data, 0),
    "number of rows": lambda data: flip(data, 56),
    "table": lambda data: flip(data, 80),
    "first pixel": lambda data: flip(data, FILE_BYTES - ROWS * 3 * SIDE * SIDE),
    "last pixel": lambda data: flip(data, FILE_BYTES - 1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_decoded_again(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Reader(tmp_path).read() == ROWS
    (path,) = tmp_path.glob("*.pixels")
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(DAMAGES[damage](whole))
    capsys.readouterr()
    reader = Reader(tmp_path)
    assert reader.read() == ROWS and reader.decoded == ROWS
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"'{path}'" in lines[0]
    assert path.read_bytes() == whole
    assert Reader(tmp_path).read() == ROWS and not capsys.readouterr().err


def test_the_file_of_another_shard_is_not_used(tmp_path: Path) -> None:
    assert Reader(tmp_path, (1,)).read() == ROWS
    (path,) = tmp_path.glob("*.pixels")
    path.rename(tmp_path / f"{0:032x}.pixels")
    reader = Reader(tmp_path, (0,))
    assert reader.read() == ROWS and reader.decoded == ROWS


def test_the_least_recently_used_shards_of_other_data_sets_are_deleted_first(tmp_path: Path) -> None:
    for shard in (1, 2, 3):
        assert Reader(tmp_path, (shard,)).read() == ROWS
    for turn, shard in enumerate((2, 3, 1)):
        os.utime(tmp_path / f"{shard:032x}.pixels", ns=(turn, turn))
    assert Reader(tmp_path, (2,)).read() == ROWS  # is now the last one used
    assert Reader(tmp_path, (4,), limit=3 * FILE_BYTES).read() == ROWS
    assert held(tmp_path).keys() == {"1.pixels", "2.pixels", "4.pixels"}


def test_shards_in_use_are_not_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    user, other = Reader(tmp_path, (1,)), Reader(tmp_path, (2,), limit=FILE_BYTES)
    assert user.read() == ROWS
    pixels = user.images.image(0, 0, lambda: encoded(1))
    assert other.read() == 0 and held(tmp_path).keys() == {"1.pixels"}
    assert_facts(capsys.readouterr().err, "machine.decoded_cache_gib", f"{FILE_BYTES / GIB:g}", "shard 0")
    del user
    third = Reader(tmp_path, (2,), limit=FILE_BYTES)
    assert third.read() == 0 and pixels is not None  # its pixels are in use
    del pixels
    assert Reader(tmp_path, (2,), limit=FILE_BYTES).read() == ROWS and held(tmp_path).keys() == {"2.pixels"}


def test_shards_without_space_are_decoded_by_the_caller_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = Reader(tmp_path, (0, 1, 2, 3), limit=2 * FILE_BYTES)
    for _ in range(2):
        assert [reader.read(number) for number in range(4)] == [ROWS, ROWS, 0, 0]
    assert reader.decoded == 2 * ROWS and held(tmp_path).keys() == {".pixels", "1.pixels"}
    (line,) = capsys.readouterr().err.splitlines()
    assert_facts(line, "machine.decoded_cache_gib", f"{2 * FILE_BYTES / GIB:g}", "shard 2")
    small = Reader(tmp_path, (5,), limit=FILE_BYTES - 1)
    assert small.read() == 0 and held(tmp_path).keys() == {".pixels", "1.pixels"}  # nothing was deleted in vain


def test_a_full_disk_is_one_line_and_what_is_cached_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Reader(tmp_path, (0,)).read() == ROWS

    def fail(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fail)
    reader = Reader(tmp_path, (1, 2, 0))
    assert [reader.read(number) for number in range(3)] == [0, 0, ROWS]
    assert held(tmp_path).keys() == {".pixels"}
    (line,) = capsys.readouterr().err.splitlines()
    assert_facts(line, f"'{tmp_path}'", os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("damaged", [False, True])
def test_a_read_only_folder_is_one_line_and_what_is_cached_is_used(damaged: bool) -> None:
    def read() -> str:
        spec = DecodedCacheSpec(decoded_cache=str(folder))
        with contextlib.redirect_stderr(io.StringIO()) as lines:
            cache = open_decoded_cache(spec, [f"{shard:032x}" for shard in (0, 1)], "machine")
            assert not cache.is_writable
            opening = lines.getvalue()
            reader = Reader(folder, (0, 1), is_writable=False)
            rows = reader.read(0), reader.read(1)
        return f"{rows} {opening.count(chr(10))} {lines.getvalue()}"

    with shared_folder() as folder:
        assert Reader(folder, (0,)).read() == ROWS
        (path,) = folder.glob("*.pixels")
        if damaged:
            path.write_bytes(flip(path.read_bytes(), FILE_BYTES - 1))
        folder.chmod(0o555)
        result = by_another_user(read)
        folder.chmod(0o777)
    assert result.startswith("(4, 0) 1 " if damaged else "(5, 0) 1 ")
    assert result.count("\n") == 1 + damaged
    assert_facts(result, "machine.decoded_cache", f"'{folder}'", f"'{path}'" if damaged else "")


def test_users_of_one_machine_share_the_folder() -> None:
    def read() -> str:
        reader = Reader(folder, (0, 1))
        return f"{reader.read(0)} {reader.read(1)} {reader.decoded}"

    with shared_folder() as folder:
        assert Reader(folder, (0,)).read() == ROWS
        assert by_another_user(read) == f"{ROWS} {ROWS} {ROWS}"
        own = Reader(folder, (0, 1))
        assert own.read(0) == own.read(1) == ROWS and own.decoded == 0


def test_an_unusable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder, number in ((tmp_path / "file" / "x", errno.ENOTDIR), (Path("/proc/limbeck"), errno.ENOENT)):
        with pytest.raises(ShardError) as caught:
            open_decoded_cache(DecodedCacheSpec(decoded_cache=str(folder)), ["0" * 32], "machine")
        assert_facts(caught.value, f"'{folder}'", os.strerror(number))


def test_a_reader_waits_for_a_writer_of_the_same_shard(tmp_path: Path, source: Path) -> None:
    folder, log = tmp_path / "decoded", tmp_path / "log"
    with start_writer(folder, source, log, "whole") as writer:
        writer.stdin and print("go", file=writer.stdin, flush=True)
        deadline = time.monotonic() + 30
        while not log.exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        reader = Reader(folder)
        assert reader.read() == ROWS and reader.decoded == 0
        writer.communicate()
