"""Serving needs only the packages of deploy/serving.txt, pinned as in constraints.txt."""

import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
from facts import assert_facts

ROOT = Path(__file__).parents[2]
SITECUSTOMIZE = """
import os
import sys
from importlib.metadata import packages_distributions

plain = lambda name: name.lower().replace("_", "-")
with open(os.environ["ALLOWED_PACKAGES"]) as lines:
    allowed = {plain(line.partition("==")[0]) for line in lines if line[0] != "#"} | {"limbeck"}
owners = {top: {plain(name) for name in names} for top, names in packages_distributions().items()}

class Refusing:
    "A module finder that does not find modules of unlisted packages."

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        of = owners.get(name.partition(".")[0], allowed)
        return self.finder.find_spec(name, path, target) if of & allowed else None

sys.meta_path[:] = map(Refusing, sys.meta_path)
"""
"""Python imports this module at its start, also in the worker processes, which decode the images."""


def test_server_needs_only_the_packages_in_serving_txt(
    bundle_folder: Path, pictures: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
    folders = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    limits = {"PYTHONPATH": folders, "ALLOWED_PACKAGES": str(ROOT / "deploy" / "serving.txt")}
    command = [sys.executable, "-c", "from server.cli import main; main()", "serve", bundle_folder]
    with subprocess.Popen(
        [*command, "--port", "0", "--device", "cpu"],
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=os.environ | limits,
    ) as process:
        assert process.stderr
        line = process.stderr.readline()
        found = re.search(r"(http://[\w.]+:\d+)", line)
        assert found, line + process.stderr.read()
        try:
            for kind in ("jpeg", "png", "webp"):
                httpx.post(f"{found[1]}/v1/classify", content=pictures[kind], timeout=60).raise_for_status()
            heic = httpx.post(f"{found[1]}/v1/classify", content=b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", timeout=60)
            assert heic.status_code == 415
            assert_facts(heic.text, "HEIC", "limbeck[heif]", "JPEG")
            httpx.post(f"{found[1]}/v1/explain", content=pictures["jpeg"], timeout=60).raise_for_status()
            httpx.get(f"{found[1]}/").raise_for_status()
            httpx.get(f"{found[1]}/metrics").raise_for_status()
        finally:
            process.send_signal(signal.SIGINT)


def test_serving_txt_has_the_pins_of_constraints_txt() -> None:
    listed = [line for line in (ROOT / "deploy" / "serving.txt").read_text().splitlines() if line[0] != "#"]
    assert len(listed) > 20 and set(listed) <= set((ROOT / "constraints.txt").read_text().splitlines())


def test_readme_lists_every_extra_and_only_existing_files() -> None:
    """All extras except dev; the grep pattern of the smallest install selects the CUDA libraries."""
    text = (ROOT / "README.md").read_text()
    (section,) = [one for one in text.split("\n## ") if "--requirement deploy/serving.txt" in one]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    named = {
        name for line in section.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)
    }
    assert extras - {"dev"} == named
    for file in re.findall(r"[\w/]+\.txt", section):
        assert (ROOT / file).exists()
    (pattern,) = re.findall(r"grep -E '(.*?)' constraints.txt", section)
    picked = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if re.match(pattern, line)]
    assert len(picked) > 10 and any(line.startswith("nvidia-cudnn") for line in picked)
