"""Real data, made small: photographs that ship with matplotlib, cut into class folders and packed into shards."""

import json
from collections.abc import Callable
from pathlib import Path

import matplotlib
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from teacher_cache.cli import add_commands
from teacher_cache.dice import dice
from teacher_cache.pack import pack
from teacher_cache.shards import ShardIndex

PICTURES = {"hopper": "grace_hopper.jpg", "logo": "logo2.png", "parcel": "Minduka_Present_Blue_Pack.png"}


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 crops of three pictures in three class folders: JPEG and PNG (RGBA too), 40 to 120 pixels a side."""
    root = tmp_path_factory.mktemp("photos")
    for name, picture in PICTURES.items():
        (root / name / "deeper").mkdir(parents=True)
        image = Image.open(Path(matplotlib.get_data_path(), "sample_data", picture))
        image.load()
        for number in range(14 if name == "hopper" else 13):
            rng = dice("photo", name, number)
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


@pytest.fixture
def limbeck() -> Callable[..., str]:
    """Runs a command as the shell would and returns what it prints; its error comes through."""
    app = typer.Typer()
    add_commands(app)

    def run(*words: object) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception:
            raise result.exception
        return result.output

    return run
