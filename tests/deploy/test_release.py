"""The wheel has all it needs and nothing else; the sdist builds the same wheel."""

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("teacher_cache", "student", "server")
DATA = (".py", ".toml", ".j2", ".html", ".css", ".js", ".svg", ".typed")


def tracked(*places: str) -> list[str]:
    """Files that git tracks or would offer to add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *places]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of a copy of the tree, and the wheel built from that sdist."""
    folder = tmp_path_factory.mktemp("release")
    for name in tracked():
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "tree" / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "tree"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("limbeck-*-py3-none-any.whl")
    return found


def test_the_wheel_has_every_module_recipe_template_and_page_and_nothing_else(wheel: Path) -> None:
    wanted = {name for name in tracked(*PACKAGES) if name.endswith(DATA)}
    assert {"server/page/index.html", "student/recipes/demo_student.toml", "teacher_cache/py.typed"} <= wanted
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
    assert found == wanted
    for extra in ("ray", "s3", "openvino", "onnx", "trackers"):
        assert f"Provides-Extra: {extra}\n" in metadata


def test_the_sdist_has_tests_and_deploy(dist: Path) -> None:
    (path,) = dist.glob("limbeck-*.tar.gz")
    with tarfile.open(path) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {name for name in tracked("tests", "deploy", "benchmarks", *PACKAGES) if not name.startswith(".")}
    assert wanted <= found
    assert {"constraints.txt", "Makefile", "LICENSE", "README.md", "pyproject.toml"} <= found


def test_the_wheel_runs_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    """The wheel finds its own files and can read each recipe. Dependencies come from this environment."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    script = """
import sys
from importlib.resources import files
import server.cli, server.page, server.demo, student.bundle.readme
from student.recipe import TrainRecipe
from teacher_cache.config import load_recipe
from teacher_cache.recipe import CacheRecipe
for package, kind in (("student", TrainRecipe), ("teacher_cache", CacheRecipe)):
    for path in files(f"{package}.recipes").iterdir():
        if path.name.endswith(".toml"):
            load_recipe(path, kind)
            print(path)
sys.argv[0] = "limbeck"
server.cli.main()
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "COLUMNS": "100"}
    command = [sys.executable, "-c", script, "recipes", "photos_cache"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    read = [line for line in done.stdout.splitlines() if line.endswith(".toml")]
    assert len(read) > 15 and all(line.startswith(str(tmp_path / "site")) for line in read)
    assert done.stdout.endswith((ROOT / "teacher_cache" / "recipes" / "photos_cache.toml").read_text())


def test_every_tool_and_dependency_is_pinned_once() -> None:
    """Including those of the extras, but not `limbeck[...]` itself."""
    pins = [line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()]
    known = [_plain(name) for name in pins]
    assert len(set(known)) == len(known)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [
        *project["dependencies"],
        *(one for many in project["optional-dependencies"].values() for one in many),
    ]
    names = {_plain(one) for one in asked} - {"limbeck"}
    assert not names - set(known)


def _plain(requirement: str) -> str:
    """The normalized name of a requirement."""
    name = requirement
    for mark in "[<>=!~; ":
        name = name.partition(mark)[0]
    return name.lower().replace("_", "-").replace(".", "-")
