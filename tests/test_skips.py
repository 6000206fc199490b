"""CI fails on a skipped test that tests/allowed_skips.txt does not list."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

def test_passes(): pass

@pytest.mark.parametrize("number", [1, 2])
def test_skips(number): pytest.skip("no browser")

@pytest.mark.xfail
def test_expected(): assert False
"""
WHOLE_FILE = 'import pytest\npytest.importorskip("no_such_module")\n'


def run(folder: Path, allowed: str, ci: str, *words: str) -> "subprocess.CompletedProcess[str]":
    (folder / "tests").mkdir(exist_ok=True)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "tests" / "test_a.py").write_text(TESTS)
    (folder / "tests" / "allowed_skips.txt").write_text(allowed)
    support = Path(__file__).with_name("support")
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(support), "PYTEST_ADDOPTS": ""}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_XDIST")}
    command = [sys.executable, "-m", "pytest", "-p", "skips", "-p", "no:cacheprovider", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=120)


@pytest.mark.parametrize("words", [(), ("--numprocesses", "2")], ids=["one process", "xdist"])
def test_a_skip_that_is_not_listed_fails_the_run_and_is_named(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = run(tmp_path, "", "true", *words)
    assert done.returncode == 1
    for name in ("tests/test_a.py::test_skips[1]: ", "tests/test_a.py::test_skips[2]: "):
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(name)]
        assert "no browser" in line and "allowed_skips.txt" in line
    assert "test_expected: " not in done.stdout


@pytest.mark.parametrize("words", [(), ("--numprocesses", "2")], ids=["one process", "xdist"])
def test_a_skipped_file_that_is_not_listed_fails_the_run(tmp_path: Path, words: tuple[str, ...]) -> None:
    listed = "tests/test_a.py::test_skips  # reason\n"
    assert run(tmp_path, listed, "true", *words).returncode == 0
    (tmp_path / "tests" / "test_b.py").write_text(WHOLE_FILE)
    done = run(tmp_path, listed, "true", *words)
    assert done.returncode == 1 and "tests/test_b.py: " in done.stdout and "no_such_module" in done.stdout
    assert run(tmp_path, listed + "tests/test_b.py  # reason\n", "true", *words).returncode == 0


def test_outside_ci_a_skip_is_no_failure(tmp_path: Path) -> None:
    assert run(tmp_path, "", "").returncode == 0


def test_a_line_without_a_reason_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, "tests/test_a.py::test_skips\n", "true")
    assert done.returncode == 4 and "tests/test_a.py::test_skips" in done.stderr + done.stdout


def test_every_listed_test_exists() -> None:
    root = Path(__file__).parents[1]
    lines = (root / "tests" / "allowed_skips.txt").read_text().splitlines()
    for line in [line for line in lines if not line.startswith("#")]:
        file, _, name = line.partition("  # ")[0].partition("::")
        assert f"def {name}(" in (root / file).read_text() if name else (root / file).is_file()
