"""Tools that look at files: those that pip installs must be there, others may be."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def run_tool() -> Callable[..., str]:
    """Runs a tool that stands beside Python, and returns what it prints; it must find nothing wrong."""

    def run(name: str, *words: object, folder: Path | None = None) -> str:
        beside = Path(sys.executable).with_name(name)
        tool = str(beside) if beside.exists() else shutil.which(name)
        assert tool, f"{name} is not installed; make install brings it"
        told = subprocess.run([tool, *map(str, words)], capture_output=True, text=True, cwd=folder, timeout=60)
        assert told.returncode == 0, told.stdout + told.stderr
        return told.stdout + told.stderr

    return run
