"""The command line in separate processes."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WAIT_SECONDS = 120


class Shell:
    """Runs `limbeck` in a folder, as a user does."""

    def __init__(self, folder: Path, **environment: str) -> None:
        """environment: changes to this process's environment."""
        self.folder = folder
        # One thread, like the server: another order of sums would change the last bit.
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}

    def start(self, *words: object) -> "subprocess.Popen[str]":
        command = [str(Path(sys.executable).with_name("limbeck")), *map(str, words)]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=self.folder, env=self._environment, stdout=pipe, stderr=pipe, encoding="utf-8"
        )

    def run(self, *words: object) -> tuple[str, str]:
        """Standard output and standard error of a command that must exit with 0."""
        return ended(self.start(*words))

    @contextmanager
    def served(self, bundle: str, *options: object) -> Iterator[str]:
        """Yield the address of a server; afterwards it gets SIGTERM and must exit with 0."""
        process = self.start("serve", bundle, "--port", 0, "--device", "cpu", *options)
        try:
            assert process.stderr
            line = process.stderr.readline()
            found = re.search(r"http://\S+:\d+", line)
            assert found, line + process.stderr.read()
            yield found[0]
        finally:
            process.send_signal(signal.SIGTERM)
            ended(process)


def ended(process: "subprocess.Popen[str]") -> tuple[str, str]:
    out, errors = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors and "Warning" not in errors
    return out, errors
