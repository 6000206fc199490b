"""Linters that the dev extra installs."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def run_tool() -> Callable[..., str]:
    """Run a tool from the Python environment, assert that it exits with 0, and return its output."""

    def run(name: str, *words: object, folder: Path | None = None) -> str:
        beside = Path(sys.executable).with_name(name)
        tool = str(beside) if beside.exists() else shutil.which(name)
        assert tool, f"{name} is not installed; run make install"
        done = subprocess.run(
            [tool, *map(str, words)], capture_output=True, encoding="utf-8", cwd=folder, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run
