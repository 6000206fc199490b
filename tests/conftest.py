"""Small real data: photos from matplotlib, cropped into class folders and packed into shards."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Template
from typing import Any

import boto3
import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fault_proxy import FaultProxy
from hypothesis import HealthCheck, settings
from PIL import Image
from typer.testing import CliRunner

from server.cli import app
from teacher_cache.cache.layout import ATTRIBUTE, ROOT
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.config import digest_of, parse_recipe
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.shards import read_shard
from teacher_cache.labeling.job import build
from teacher_cache.models.card import Card
from teacher_cache.models.network import create_network, normalize
from teacher_cache.models.run_folder import FINAL
from teacher_cache.models.spec import EvalSpec, NetworkSpec
from teacher_cache.models.weights import save_network, weights_sha256
from teacher_cache.packing.pack import pack
from teacher_cache.recipe import CacheRecipe
from teacher_cache.rng import generator
from teacher_cache.storage.object_store import TIMEOUTS
from teacher_cache.views.decode import decode
from teacher_cache.views.eval_transform import center_crop

pytest_plugins = ["teacher_fixtures", "student_fixtures", "server_fixtures", "skips"]

settings.register_profile(  # a slow machine is not an error
    "limbeck", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("limbeck")
torch.set_num_threads(1)  # two threads are slower than one on a busy machine

os.environ |= {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux it keeps Ray to loopback; read when ray is imported
    "RAY_AUTH_MODE": "disabled",  # otherwise Ray writes a token into the home folder
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # like all other test processes
}
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # the tests start many processes that import the same modules

PICTURES = {"hopper": "grace_hopper.jpg", "logo": "logo2.png", "parcel": "Minduka_Present_Blue_Pack.png"}

RUN = """
[data]
train = "$shards"
val = "$shards"

[optim]
name = "adamw"
lr = 3e-3
weight_decay = 0.05
clip_grad = 1.0

[schedule]
epochs = 2
warmup_epochs = 1
warmup_lr = 1e-4
min_lr = 1e-5

[train]
batch = 8
streams = 4
seed = 1

[eval]
size = 32
crop = 0.9
"""

VIEWS = """
[views]
size = 32
hflip = 0.5
auto_augment = "rand-m9-mstd0.5-inc1"
re_prob = 0.25
mixup = 0.8
cutmix = 1.0
"""

TEACHER = f"""
{RUN}
{VIEWS}
[model]
name = "resnet10t"
args = {{ stem_type = "", channels = [8, 8, 16, 16] }}
small_stem = true

[loss]
distillation = "none"
smoothing = 0.1
"""

CACHE = f"""
{VIEWS}
[data]
train = "$shards"

[teacher]
run = "$teacher"

[cache]
path = "$cache"
seeds = 2
seeds_per_unit = 2
encoding = "hard"
"""

STUDENT = f"""
{RUN}
[cache]
path = "$cache"

[model]
name = "deit_tiny_distilled_patch16_224"
args = {{ img_size = 32, patch_size = 8, embed_dim = 24, depth = 2, num_heads = 2, drop_path_rate = 0.1 }}

[loss]
distillation = "hard"
smoothing = 0.1
"""

S3_SERVER = """
import logging, sys, threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
one, answer = threading.Lock(), DomainDispatcherApplication.__call__

def one_by_one(*request):  # S3 checks and writes in one step; moto in two
    with one:
        return answer(*request)

DomainDispatcherApplication.__call__ = one_by_one
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""

LONG = (
    *("test_flow", "test_on_ray", "test_elastic", "test_faults", "test_resume", "test_endurance"),
    *("test_object_store_flow", "test_slurm", "test_estimate", "test_export", "test_runtime", "test_learner"),
)

RECIPES = {"teacher": TEACHER, "cache": CACHE, "student": STUDENT}


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name long bytes by their argument: a gzip holds the time, and all processes must collect the same tests."""
    return argname if isinstance(val, bytes) and len(val) > 8 else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow files first, so that all test processes finish at about the same time."""
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(scope="session")
def recipe_text() -> Callable[..., str]:
    """Return the text of a small recipe, e.g. recipe_text("student", shards=folder, cache=path)."""
    return lambda name, **places: Template(RECIPES[name]).substitute(places)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 crops of three pictures in three class folders: JPEG and PNG (RGBA too), 40 to 120 pixels a side."""
    root = tmp_path_factory.mktemp("photos")
    for name, picture in PICTURES.items():
        (root / name / "deeper").mkdir(parents=True)
        image = Image.open(Path(matplotlib.get_data_path(), "sample_data", picture))
        image.load()
        for number in range(14 if name == "hopper" else 13):
            rng = generator("photo", name, number)
            width, height = rng.integers(40, 121, 2).tolist()
            left, top = rng.integers(0, image.width - width), rng.integers(0, image.height - height)
            crop = image.crop((left, top, left + width, top + height))
            if number % 4 == 0:
                crop.save(root / name / f"{number}.png")
            elif number % 4 == 1:
                crop.convert("RGB").save(root / name / "deeper" / f"{number}.JPEG", quality=90)
            else:
                crop.convert("RGB").save(root / name / f"{number}.jpg", quality=90)
        (root / name / "2.json").write_text(json.dumps({"from": picture, "class": "not this one"}))
    return root


@pytest.fixture(scope="session")
def shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    """The photos packed into shards of 16, 16 and 8 rows."""
    return pack(photos, tmp_path_factory.mktemp("shards"), shard_rows=16)


@pytest.fixture(scope="session")
def teacher_run(shards: ShardIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small ResNet, trained for a second on center crops of the photos."""
    run = tmp_path_factory.mktemp("teacher")
    spec = NetworkSpec(name="resnet10t", args={"stem_type": "", "channels": [8, 8, 16, 16]}, small_stem=True)
    records = [record for number in range(len(shards.shards)) for record in read_shard(shards, number)]
    middles = np.stack([center_crop(decode(record.image), 32, 1.0) for record in records])
    pixels = normalize(torch.from_numpy(middles).permute(0, 3, 1, 2).float(), spec.mean, spec.std)
    labels = torch.tensor([record.label for record in records])
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = create_network(spec, len(shards.classes))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(12):
        loss = F.cross_entropy(network(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = network.state_dict()
    card = Card(
        format=1,
        network=spec,
        eval=EvalSpec(size=32, crop=1.0),
        classes=shards.classes,
        heads=("class",),
        fusion="class",
        sha256=weights_sha256(state),
        accuracy={"class": 100.0},
        recipe={},
    )
    save_network(run / FINAL, card, state)
    return run


@pytest.fixture(scope="session")
def cache_recipe(
    recipe_text: Callable[..., str],
    teacher_run: Path,
    shards: ShardIndex,
    tmp_path_factory: pytest.TempPathFactory,
) -> CacheRecipe:
    """A recipe with every part of a view: crop, flip, RandAugment, erasing, mixup and cutmix."""
    path = tmp_path_factory.mktemp("caches") / "cache.zarr"
    tables = tomllib.loads(recipe_text("cache", shards=shards.folder, teacher=teacher_run, cache=path))
    tables["cache"] |= {"seeds": 4, "encoding": "topk", "k": 2}
    tables["job"] = {"workers": 0, "batch": 16, "device": "cpu"}
    return parse_recipe(tables, CacheRecipe, "the tests' recipe")


@pytest.fixture(scope="session")
def cache(cache_recipe: CacheRecipe) -> TargetCache:
    """The complete cache of `cache_recipe`; copy its folder before changing it."""
    return build(cache_recipe)


@pytest.fixture(scope="session")
def alter_manifest() -> Callable[..., None]:
    """Change fields in the manifest of the cache at a path, and its sha256."""

    def alter(path: Path, **fields: Any) -> None:
        group = json.loads((path / ROOT).read_text())
        plain = group["attributes"][ATTRIBUTE] | fields
        plain.pop("sha256")
        group["attributes"][ATTRIBUTE] = plain | {"sha256": digest_of(plain)}
        (path / ROOT).write_text(json.dumps(group))

    return alter


@pytest.fixture
def limbeck() -> Callable[..., str]:
    """Run a command and return its output; raises its exception."""

    def run(*words: object) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception:
            raise result.exception
        return result.output

    return run


@pytest.fixture(scope="session")
def new_bucket() -> Iterator[Callable[[], str]]:
    """Create a bucket in an S3 server on loopback; returns its URL. Address and keys are in the environment."""
    command = [sys.executable, "-c", S3_SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as server:
        assert server.stdin and server.stdout
        keys = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{int(server.stdout.readline())}",
            "AWS_ACCESS_KEY_ID": "limbeck",
            "AWS_SECRET_ACCESS_KEY": "limbeck",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }
        with pytest.MonkeyPatch.context() as environment:
            for name, value in keys.items():
                environment.setenv(name, value)
            client, made = boto3.client("s3", region_name="us-east-1"), iter(range(1000))

            def make() -> str:
                name = f"limbeck-{next(made)}"
                client.create_bucket(Bucket=name)
                return f"s3://{name}"

            yield make
        server.kill()


@pytest.fixture(scope="session")
def shards_in_bucket(new_bucket: Callable[[], str], shards: ShardIndex) -> str:
    """The URL of a copy of the shards and their index in the S3 server."""
    url = f"{new_bucket()}/shards"
    _, _, bucket, prefix = url.split("/")
    for file in Path(shards.folder).iterdir():
        boto3.client("s3").upload_file(str(file), bucket, f"{prefix}/{file.name}")
    return url


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """A Ray cluster on loopback with one node, of two CPUs. Its address is `.address`."""
    from ray.cluster_utils import Cluster  # takes seconds to import, which other tests save

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@pytest.fixture
def proxy(new_bucket: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy in front of the S3 server for all requests; the read timeout is one second."""
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"]).running() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setitem(TIMEOUTS, "read_timeout", "1 second")
        yield proxy
