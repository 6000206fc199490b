"""After the commands of deploy/README.md for a private registry, every image comes from it."""

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
"""`kustomize edit set image`, as far as it is used; kubectl has no `edit` for it."""


def registry_commands() -> str:
    """The commands of the README that rename the images."""
    fences = re.findall(r"```sh\n(.*?)```", (ROOT / "deploy" / "README.md").read_text(), re.DOTALL)
    (found,) = [fence for fence in fences if "kustomize edit" in fence]
    return str(found)


def images(plain: Any) -> list[str]:
    """The images of all containers, at any depth."""
    if isinstance(plain, list):
        return [image for one in plain for image in images(one)]
    if not isinstance(plain, dict):
        return []
    own = [plain["image"]] if isinstance(plain.get("image"), str) else []
    return own + [image for one in plain.values() for image in images(one)]


@pytest.fixture(scope="module")
def renamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of deploy/ after these commands."""
    folder = tmp_path_factory.mktemp("renamed")
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    for name, text in (("docker", '#!/bin/bash\necho "$@" >> "$CALLS"\n'), ("kustomize", KUSTOMIZE)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "CALLS": str(folder / "calls")}
    done = subprocess.run(
        ["bash", "-e", "-c", registry_commands()],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("overlay", ["gpu", "one-machine", "ray"])
def test_every_image_of_an_overlay_was_pushed(renamed: Path, overlay: str) -> None:
    found = images(rendered(renamed / "deploy" / "kubernetes" / "overlays" / overlay))
    calls = (renamed / "calls").read_text().splitlines()
    pushed = {line.removeprefix("push ") for line in calls if line.startswith("push ")}
    assert len(pushed) == 3 and all(image.startswith("registry.example/limbeck-") for image in pushed)
    assert len(found) >= 4 and set(found) == pushed
