"""What the command line sets up: warnings of libraries as plain lines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from facts import assert_facts

LIBRARY = """
import warnings
def warn(message, category):
    warnings.warn(message, category, stacklevel=1)
"""
SCRIPT = """
import subprocess, sys
import server.startup
sys.path.insert(0, sys.argv[1])
import library
server.startup.show_plain_warnings()
library.warn("weights are old\\n  see the manual", UserWarning)
library.warn("slow path (Triggered internally at /build/aten/src/x.cpp:12.)", RuntimeWarning)
for category in (DeprecationWarning, FutureWarning, ResourceWarning):
    library.warn("for developers", category)
subprocess.run([sys.executable, "-c", "import warnings; warnings.warn('of a child')"])
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "library.py").write_text(LIBRARY, encoding="utf-8")
    return folder


def errors_of(site: Path, **environment: str) -> str:
    known = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    command = [sys.executable, "-c", SCRIPT, str(site)]
    ran = subprocess.run(command, env=known | environment, capture_output=True, encoding="utf-8", check=True)
    return ran.stderr


def test_warnings_are_plain_lines_without_the_source_of_a_library(site: Path) -> None:
    errors = errors_of(site)
    assert_facts(errors, "library: weights are old", "library: slow path")
    assert len(errors.splitlines()) == 2
    assert str(site) not in errors and ".cpp" not in errors and "warnings.warn" not in errors


def test_the_filters_of_a_developer_are_kept(site: Path) -> None:
    errors = errors_of(site, PYTHONWARNINGS="always")
    assert_facts(errors, site / "library.py", "DeprecationWarning", "of a child")


def test_an_import_of_the_packages_changes_no_filter() -> None:
    script = "import warnings; before = list(warnings.filters), warnings.showwarning; "
    script += "import server.cli; assert (list(warnings.filters), warnings.showwarning) == before"
    subprocess.run([sys.executable, "-c", script], check=True)
