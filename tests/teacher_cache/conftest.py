"""What more than one test of this package spoils, kills, or makes up."""

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

from teacher_cache.cache import TargetCache
from teacher_cache.dice import dice
from teacher_cache.encoding import Array
from teacher_cache.layout import Unit
from teacher_cache.manifest import Manifest
from teacher_cache.recipe import CacheRecipe, ViewPolicy, parse_recipe, resolved

VIEWS = ViewPolicy(size=8, hflip=0.5, auto_augment="", re_prob=0.0, mixup=0.8, cutmix=1.0)

ZYGOTE = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from teacher_cache import build, disk, pack, recipe, world

def run_pack(source, out):
    pack.pack(Path(source), Path(out), shard_rows=2, skip_broken=True)

def run_build(tables, rank=0, size=0, extend=False):
    share = world.World(rank, size) if size else None
    build.build(recipe.parse_recipe(tables, recipe.CacheRecipe, "recipe"), share, extend=extend)

def run_steps(most, *words):
    "Builds, and dies before its durable step of this number, counted from 0; a write is cut in half."
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
        counted(disk, name)
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
    """The photos, four of them broken, each in its own way."""
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
    """Packs or builds in a process of its own, kills it with SIGKILL once `enough`; was it killed at all?"""
    command = [sys.executable, "-c", ZYGOTE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as zygote:
        assert zygote.stdin and zygote.stdout
        stdin, stdout = zygote.stdin, zygote.stdout

        def run(name: str, words: list[object], enough: Callable[[], bool] | None = None) -> bool:
            stdin.write(json.dumps([name, words]) + "\n")
            stdin.flush()
            child = int(stdout.readline())
            with suppress(ProcessLookupError):  # it may have ended
                while enough and not enough():
                    os.kill(child, 0)
                    time.sleep(0.0002)
                if enough:
                    os.kill(child, signal.SIGKILL)
            status = int(stdout.readline())
            assert status in (0, signal.SIGKILL), status
            return status == signal.SIGKILL

        yield run
        stdin.write("end\n")  # closing is not enough: DataLoader workers forked since hold this pipe too
        stdin.flush()


@pytest.fixture(scope="session")
def changed() -> Callable[..., CacheRecipe]:
    """A recipe for a cache at another path, with some keys of some tables changed."""

    def change(recipe: CacheRecipe, path: object, **tables: dict[str, Any]) -> CacheRecipe:
        plain = resolved(recipe)
        plain["cache"]["path"] = str(path)
        for name, keys in tables.items():
            plain[name] |= keys
        return parse_recipe(plain, CacheRecipe, "changed")

    return change


@pytest.fixture(scope="session")
def assert_same() -> Callable[[TargetCache, TargetCache], None]:
    """Two caches hold the same targets wherever the first has any; bit for bit."""

    def compare(part: TargetCache, whole: TargetCache) -> None:
        for unit in part.present():
            for seed in part.layout.seeds(unit):
                ours, theirs = (cache.read(seed, unit.shard).columns for cache in (part, whole))
                assert ours.keys() == theirs.keys()
                for name, values in ours.items():
                    assert values.dtype == theirs[name].dtype and values.tobytes() == theirs[name].tobytes(), name

    return compare


class MadeUp:
    """Caches of targets that no teacher gave: three classes, shards of 3, 7 and 1 rows."""

    KINDS = ("hard", "topk", "dense", "topk uint8", "dense uint8")

    def promise(self, kind: str = "topk", seeds: int = 5, per_unit: int = 2) -> Manifest:
        """By default the last block of seeds is a short one."""
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
        """What a teacher might have said of a unit, encoded; another writer's differs."""
        rows, said = cache.rows[unit.shard], []
        for seed in cache.layout.seeds(unit):
            rng = dice("made up", seed, unit.shard, *writer)
            logits = (3 * rng.standard_normal((rows, 3))).astype(np.float32)
            said.append(cache.encoding.encode(logits, rng.integers(0, 2**64, rows, dtype=np.uint64)))
        return {name: np.stack([columns[name] for columns in said]) for name in said[0]}

    def fill(self, cache: TargetCache, writer: str = "") -> TargetCache:
        for unit in cache.missing():
            cache.write(unit, self.columns(cache, unit, writer))
        return cache

    def differ(self, cache: TargetCache, unit: Unit, writer: str = "") -> bool:
        """Whether a unit holds anything else than what this writer says."""
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
        pytest.skip("Azurite is not installed; make test installs it where there is npm")
    with running_azurite(program) as url, pytest.MonkeyPatch.context() as environment:
        environment.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
        environment.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
        environment.setenv("AZURE_STORAGE_ENDPOINT", url)
        with BlobServiceClient(url, credential=KEY) as client:
            names = (f"limbeck-{number}" for number in itertools.count())
            yield lambda: f"az://{client.create_container(next(names)).container_name}"
