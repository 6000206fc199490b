"""The names that other programs import, and the README's lines that use them."""

import importlib
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MADE = ROOT / "tests" / "data" / "0.1.0"
PUBLIC = {
    "teacher_cache": {
        *("CacheRecipe", "LimbeckError", "ShardIndex", "TargetCache", "Targets", "ViewPolicy"),
        *("build", "load_index", "load_recipe", "pack", "verify"),
    },
    "student": {
        *("Bootstrap", "Bundle", "ExportOptions", "Heads", "Student", "TrainRecipe"),
        *("distill_loss", "evaluate", "export", "fuse", "open_bundle", "train"),
    },
    "server": {"Settings", "create_app"},
}
NAMES = [(package, name) for package, names in PUBLIC.items() for name in sorted(names)]


@pytest.mark.parametrize("package", PUBLIC)
def test_a_package_exports_exactly_its_public_names(package: str) -> None:
    module = importlib.import_module(package)
    assert set(module.__all__) == PUBLIC[package] <= set(dir(module))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_a_public_name_is_documented_and_described_in_the_readme(package: str, name: str) -> None:
    found = getattr(importlib.import_module(package), name)
    assert inspect.isclass(found) or inspect.isfunction(found)
    assert inspect.getdoc(found) and found.__module__.partition(".")[0] == package
    assert re.search(rf"^\| .*`{name}`", (ROOT / "README.md").read_text(), re.M)


def test_names_stay_functions_after_every_module_is_imported() -> None:
    """A module of the name would replace it in its package."""
    script = """
import importlib, inspect, pkgutil, sys
for package in ("teacher_cache", "student", "server"):
    module = importlib.import_module(package)
    for found in pkgutil.walk_packages(module.__path__, package + "."):
        if not found.name.endswith((".on_ray", ".ray_actor", ".actor_pool", ".ray_cluster", ".ray_logs")):
            importlib.import_module(found.name)
    assert not [name for name in module.__all__ if inspect.ismodule(getattr(module, name))], package
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_the_lines_in_the_readme_run(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(MADE / "caches" / "topk", tmp_path / "photos.zarr")
    shutil.copytree(MADE / "bundle", tmp_path / "bundle")
    shutil.copy(next(photos.rglob("*.jpg")), tmp_path / "cat.jpg")
    (code,) = re.findall(r"## Python API\n.*?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    *targets, label = capsys.readouterr().out.splitlines()
    assert targets and label in (MADE / "bundle" / "labels.txt").read_text().splitlines()
