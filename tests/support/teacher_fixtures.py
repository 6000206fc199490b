"""Fixtures of this package: damaged photos, killed processes, synthetic caches."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from azure.storage.blob import BlobServiceClient
from azurite import ACCOUNT, KEY, find_azurite, running_azurite

from teacher_cache.cache.encoding import Array
from teacher_cache.cache.layout import Unit
from teacher_cache.cache.manifest import Manifest
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.config import parse_recipe, resolved
from teacher_cache.recipe import CacheRecipe
from teacher_cache.rng import generator
from teacher_cache.views.policy import ViewPolicy

VIEWS = ViewPolicy(size=8, hflip=0.5, auto_augment="", re_prob=0.0, mixup=0.8, cutmix=1.0)

ZYGOTE = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from teacher_cache import config, recipe
from teacher_cache.labeling import job
from teacher_cache.distributed import world
from teacher_cache.packing import pack
from teacher_cache.storage import atomic

def run_pack(source, out):
    pack.pack(Path(source), Path(out), shard_rows=2, skip_broken=True)

def run_build(tables, rank=0, size=0, extend=False):
    share = world.World(rank, size) if size else None
    job.build(config.parse_recipe(tables, recipe.CacheRecipe, "recipe"), share, extend=extend)

def run_steps(most, *words):
    "Build, and exit by SIGKILL before durable step number `most` (0-based); a write is cut in half."
    steps = iter(range(most + 1))

    def counted(owner, name):
        step = getattr(owner, name)

        def do(*args):
            if next(steps) == most:
                if name == "write_bytes":
                    step(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*args)

        setattr(owner, name, do)

    for name in ("sync_file", "sync_folder"):
        counted(atomic, name)
    for name in ("write_bytes", "replace", "hardlink_to"):
        counted(Path, name)
    run_build(*words)

for line in iter(sys.stdin.readline, "end\\n"):
    child = os.fork()
    if child == 0:
        name, words = json.loads(line)
        {"pack": run_pack, "build": run_build, "steps": run_steps}[name](*words)
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="session")
def spoiled(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos, three of them damaged, each in another way, and a sidecar that is a list."""
    root = tmp_path_factory.mktemp("spoiled") / "photos"
    shutil.copytree(photos, root)
    whole = (root / "logo/2.jpg").read_bytes()
    (root / "logo/2.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "logo/3.jpg").write_bytes(b"")
    (root / "parcel/4.png").write_bytes(b"<html>404</html>")
    (root / "hopper/2.json").write_text("[1, 2]")
    return root


@pytest.fixture(scope="module")
def kill() -> Iterator[Callable[..., bool]]:
    """Pack or build in a separate process, killed when `enough` returns true; returns whether it was killed."""
    command = [sys.executable, "-c", ZYGOTE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as zygote:
        assert zygote.stdin and zygote.stdout
        stdin, stdout = zygote.stdin, zygote.stdout

        def run(name: str, words: list[object], enough: Callable[[], bool] | None = None) -> bool:
            stdin.write(json.dumps([name, words]) + "\n")
            stdin.flush()
            child = int(stdout.readline())
            with suppress(ProcessLookupError):  # it may have exited
                while enough and not enough():
                    os.kill(child, 0)
                    time.sleep(0.0002)
                if enough:
                    os.kill(child, signal.SIGKILL)
            status = int(stdout.readline())
            assert status in (0, signal.SIGKILL), status
            return status == signal.SIGKILL

        yield run
        stdin.write("end\n")  # forked workers keep the pipe open, so closing it is not enough
        stdin.flush()


@pytest.fixture(scope="session")
def changed() -> Callable[..., CacheRecipe]:
    """Return the recipe with another cache path and some keys changed."""

    def change(recipe: CacheRecipe, path: object, **tables: dict[str, Any]) -> CacheRecipe:
        plain = resolved(recipe)
        plain["cache"]["path"] = str(path)
        for name, keys in tables.items():
            plain[name] |= keys
        return parse_recipe(plain, CacheRecipe, "changed")

    return change


@pytest.fixture(scope="session")
def assert_same() -> Callable[[TargetCache, TargetCache], None]:
    """Assert that both caches hold the same targets, bit for bit, in every unit of the first."""

    def compare(part: TargetCache, whole: TargetCache) -> None:
        for unit in part.present():
            for seed in part.layout.seeds(unit):
                ours, theirs = (cache.read(seed, unit.shard).columns for cache in (part, whole))
                assert ours.keys() == theirs.keys()
                for name, values in ours.items():
                    assert values.dtype == theirs[name].dtype and values.tobytes() == theirs[name].tobytes(), name

    return compare


class MadeUp:
    """Caches of synthetic targets: three classes, shards of 3, 7 and 1 rows."""

    KINDS = ("hard", "topk", "dense", "topk uint8", "dense uint8")

    def make_manifest(self, kind: str = "topk", seeds: int = 5, per_unit: int = 2) -> Manifest:
        """Return a manifest; by default the last block of seeds is short."""
        values = "uint8" if kind.endswith("uint8") else "float16"
        return Manifest(
            views=VIEWS.model_dump(mode="json"),
            teacher={},
            encoding={"kind": kind.removesuffix(" uint8"), "k": 2, "values": values, "digest_bits": 16},
            shards={"classes": ["a", "b", "c"], "rows": [3, 7, 1], "md5": ["", "", ""]},
            seeds=seeds,
            seeds_per_unit=per_unit,
            recipe={},
        )

    def columns(self, cache: TargetCache, unit: Unit, writer: str = "") -> dict[str, Array]:
        """Random targets of a unit, encoded; each writer has different ones."""
        rows, encoded = cache.rows[unit.shard], []
        for seed in cache.layout.seeds(unit):
            rng = generator("made up", seed, unit.shard, *writer)
            logits = (3 * rng.standard_normal((rows, 3))).astype(np.float32)
            encoded.append(cache.encoding.encode(logits, rng.integers(0, 2**64, rows, dtype=np.uint64)))
        return {name: np.stack([columns[name] for columns in encoded]) for name in encoded[0]}

    def fill(self, cache: TargetCache, writer: str = "") -> TargetCache:
        for unit in cache.missing():
            cache.write(unit, self.columns(cache, unit, writer))
        return cache

    def differ(self, cache: TargetCache, unit: Unit, writer: str = "") -> bool:
        """Whether a unit differs from the targets of this writer."""
        for place, seed in enumerate(cache.layout.seeds(unit)):
            read = cache.read(seed, unit.shard).columns
            for name, values in self.columns(cache, unit, writer).items():
                if read[name].tobytes() != values[place].tobytes():
                    return True
        return False


@pytest.fixture(scope="session")
def made_up() -> MadeUp:
    return MadeUp()


@pytest.fixture(scope="session")
def new_container() -> Iterator[Callable[[], str]]:
    """Makes a container in an Azure server on loopback and returns its URL; the environment has its keys."""
    if (program := find_azurite()) is None:
        pytest.skip("Azurite is not installed; make test installs it if npm is available")
    with running_azurite(program) as url, pytest.MonkeyPatch.context() as environment:
        environment.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
        environment.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
        environment.setenv("AZURE_STORAGE_ENDPOINT", url)
        with BlobServiceClient(url, credential=KEY) as client:
            names = (f"limbeck-{number}" for number in itertools.count())
            yield lambda: f"az://{client.create_container(next(names)).container_name}"
