"""Commands in locales that cannot represent the names of files and classes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from facts import assert_facts
from shell import Shell

from student.study.folder import create_study

NAMES = {"hopper": "Müll", "logo": "寿司", "parcel": "हिन्दी"}
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_names_survive_and_are_printed_as_escapes(
    photos: Path, recipe_text: Callable[..., str], tmp_path: Path
) -> None:
    folder, shell = tmp_path, Shell(tmp_path, **ASCII)
    for name, new in NAMES.items():
        shutil.copytree(photos / name, folder / "写真" / new)
    text = "# für 寿司 🍣\n" + recipe_text("teacher", shards="shards-寿司")
    (folder / "teacher.toml").write_text(text, encoding="utf-8-sig", newline="\r\n")
    shell.run("pack", "写真", "shards-寿司")
    index = json.loads((folder / "shards-寿司" / "index.json").read_bytes())
    assert index["classes"] == sorted(NAMES.values())
    shorter = ["--set", "schedule.epochs=1", "--set", "schedule.warmup_epochs=0", "--set", "machine.device='cpu'"]
    _, errors = shell.run("train", "teacher.toml", "--out", "寿", *shorter)
    assert_facts(errors, r"\u5bff")
    labels = (folder / "寿" / "final" / "labels.txt").read_bytes()
    assert labels.decode().split() == index["classes"]
    shown, _ = shell.run("export", "寿", "हि")
    assert_facts(shown, r"\u0939\u093f")
    shown, _ = shell.run("evaluate", "हि", "shards-寿司", "--json", "寿.json", "--predictions", "寿.jsonl")
    assert_facts(shown, r"\u5bff\u53f8")
    assert json.loads((folder / "寿.json").read_bytes())["model"] == "हि"


def test_an_error_names_a_file_in_the_locale_of_the_terminal(tmp_path: Path) -> None:
    process = Shell(tmp_path, **ASCII).start("train", "寿.toml")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and r"'\u5bff.toml'" in errors


@pytest.mark.parametrize("environment", [ASCII, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}])
def test_standard_output_has_escapes_of_what_its_encoding_lacks(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    create_study(tmp_path / "寿司", "seeds", {}, ["🍣"])
    shown, _ = Shell(tmp_path, **environment).run("study", "status", "寿司")
    assert_facts(shown, r"\u5bff\u53f8", r"\U0001f363")
