"""A file at a path that the user names is replaced only by the command and the inputs that made it."""

import os
from pathlib import Path

import pytest
from facts import assert_facts

from teacher_cache.errors import RecipeError
from teacher_cache.storage.output import check_output_folder, check_outputs, has_origin, origin_of

ORIGIN = origin_of("evaluate", Path("run"), ["val"], 1000)


def refused(path: Path, overwrite: bool = False, **more: Path) -> str:
    with pytest.raises(RecipeError) as error:
        check_outputs({"--json": path} | more, ORIGIN, overwrite)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_origin_names_command_and_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert origin_of("a", Path("run")) == origin_of("a", tmp_path / "run")
    assert len({origin_of("a", 1), origin_of("b", 1), origin_of("a", 2), origin_of("a", [1])}) == 4


def test_files_of_others_are_refused_unless_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    check_outputs({"--json": path, "--png": None}, ORIGIN, False)
    path.write_text(f'{{"made_by": "{ORIGIN}"}}', encoding="utf-8")
    check_outputs({"--json": path}, ORIGIN, False)
    for text in ("notes", "", f'{{"made_by": "{origin_of("evaluate", Path("other"), ["val"], 1000)}"}}'):
        path.write_text(text, encoding="utf-8")
        assert_facts(refused(path), f"--json '{path}'", "--overwrite")
        check_outputs({"--json": path}, ORIGIN, True)
        assert path.read_text(encoding="utf-8") == text


def test_paths_that_cannot_be_written_are_refused_before_the_work(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for overwrite in (False, True):
        assert_facts(refused(tmp_path, overwrite), "--json", tmp_path, "folder")
        assert_facts(refused(tmp_path / "none" / "x.json", overwrite), tmp_path / "none", "create")
        assert_facts(refused(tmp_path / "file" / "x.json", overwrite), tmp_path / "file")
        assert_facts(refused(Path("/dev/null"), overwrite), "/dev/null")
        assert_facts(refused(tmp_path / "pipe", overwrite), "pipe")
        assert_facts(refused(Path("/proc/x.json"), overwrite), "--json", "/proc")
    assert_facts(refused(tmp_path / "x", **{"--png": tmp_path / "none" / ".." / "x"}), "--png", "--json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe"]


def test_folders_of_others_are_refused_unless_overwrite(tmp_path: Path) -> None:
    def check(folder: Path, overwrite: bool = False) -> None:
        check_output_folder(folder, "--out", "report.html", ORIGIN, overwrite)

    check(tmp_path / "new" / "report")
    assert not (tmp_path / "new").exists()
    check(tmp_path)
    (tmp_path / "report.html").write_text(f'<meta content="{ORIGIN}">', encoding="utf-8")
    check(tmp_path)
    assert has_origin(tmp_path / "report.html", ORIGIN)
    (tmp_path / "report.html").write_text("mine", encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        check(tmp_path)
    assert_facts(error.value, f"--out '{tmp_path}'", "--overwrite")
    check(tmp_path, True)
    for path in (tmp_path / "report.html", tmp_path / "report.html" / "x", Path("/proc/report")):
        with pytest.raises(RecipeError) as error:
            check(path, True)
        assert_facts(error.value, f"--out '{path}'")
