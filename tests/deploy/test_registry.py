"""The walk of deploy/README.md to images under names of one's own leaves no image without its registry."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from manifests import rendered

ROOT = Path(__file__).parents[2]
KUSTOMIZE = f"""#!{sys.executable}
import sys
from pathlib import Path
import yaml

assert sys.argv[1:4] == ["edit", "set", "image"]
path = Path("kustomization.yaml")
plain = yaml.safe_load(path.read_text())
images = {{one["name"]: one for one in plain.get("images", [])}}
for words in sys.argv[4:]:
    name, _, image = words.partition("=")
    new, _, tag = image.rpartition(":")
    images[name] = {{"name": name, "newName": new, "newTag": tag}}
plain["images"] = list(images.values())
path.write_text(yaml.safe_dump(plain))
"""
"""`kustomize edit set image`, as far as it is used; kubectl, which renders, has no `edit`."""


def walk() -> str:
    """The commands of the README that rename the images."""
    fences = re.findall(r"```sh\n(.*?)```", (ROOT / "deploy" / "README.md").read_text(), re.DOTALL)
    (found,) = [fence for fence in fences if "kustomize edit" in fence]
    return str(found)


def images(plain: Any) -> list[str]:
    """Of every container, at whatever depth."""
    if isinstance(plain, list):
        return [image for one in plain for image in images(one)]
    if not isinstance(plain, dict):
        return []
    own = [plain["image"]] if isinstance(plain.get("image"), str) else []
    return own + [image for one in plain.values() for image in images(one)]


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of deploy/ after the walk."""
    folder = tmp_path_factory.mktemp("walked")
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    for name, text in (("docker", '#!/bin/bash\necho "$@" >> "$ASKED"\n'), ("kustomize", KUSTOMIZE)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "ASKED": str(folder / "asked")}
    told = subprocess.run(
        ["bash", "-e", "-c", walk()], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert told.returncode == 0, told.stderr
    return folder


@pytest.mark.parametrize("overlay", ["gpu", "one-machine", "ray"])
def test_after_the_walk_every_image_is_one_that_was_pushed(walked: Path, overlay: str) -> None:
    found = images(rendered(walked / "deploy" / "kubernetes" / "overlays" / overlay))
    asked = (walked / "asked").read_text().splitlines()
    pushed = {line.removeprefix("push ") for line in asked if line.startswith("push ")}
    assert len(pushed) == 3 and all(image.startswith("registry.example/limbeck-") for image in pushed)
    assert len(found) >= 4 and set(found) == pushed
