"""Commands in locales that cannot represent the names of files and classes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from facts import assert_facts
from shell import Shell

from server.settings import Settings
from server.web.auth import key_digest, read_keys
from student.evaluation.test_set import open_test_set
from student.study.folder import create_study
from teacher_cache.data.index import ShardIndex
from teacher_cache.errors import LimbeckError
from teacher_cache.models.card import load_card
from teacher_cache.models.run_folder import network_folder

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


def test_labels_and_keys_of_a_windows_editor(shards: ShardIndex, teacher_run: Path, tmp_path: Path) -> None:
    keys, folder, card = tmp_path / "keys.txt", tmp_path / "shards", load_card(network_folder(teacher_run))
    shutil.copytree(shards.folder, folder)
    labels = json.dumps([0] * shards.rows).replace(",", ",\n")
    for encoding in ("utf-8", "utf-8-sig"):
        keys.write_text("# für\nkey\n", encoding=encoding, newline="\r\n")
        assert read_keys(Settings(api_keys=keys)) == [key_digest(b"key")]
        (folder / "real.json").write_text(labels, encoding=encoding, newline="\r\n")
        assert open_test_set(f"{folder}@real.json", card).labels
    keys.write_text("key", encoding="utf-16")
    (folder / "real.json").write_text(labels, encoding="utf-16")
    with pytest.raises(LimbeckError) as of_keys:
        read_keys(Settings(api_keys=keys))
    with pytest.raises(LimbeckError) as of_labels:
        open_test_set(f"{folder}@real.json", card)
    assert_facts(of_keys.value, keys, "UTF-16", "UTF-8")
    assert_facts(of_labels.value, "real.json", "UTF-16", "UTF-8")
