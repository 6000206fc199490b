"""SIGTERM ends a server within seconds, even while it reads a bundle."""

import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from load_generator import WAIT_SECONDS, ask

SOON_SECONDS = 8


def test_sigterm_ends_a_server_that_waits_for_a_silent_bucket(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ALLOW_HTTP"):
        monkeypatch.setenv(name, "true")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(WAIT_SECONDS)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        process = command("serve", "s3://bucket/bundle", "--port", 0)
        asked, _ = silent.accept()
        with asked:
            assert asked.recv(1000).startswith(b"GET ")
            began = time.monotonic()
            process.terminate()
            out, errors = process.communicate(timeout=WAIT_SECONDS)
    assert (process.returncode, out, errors) == (128 + signal.SIGTERM, "", "")
    assert time.monotonic() - began < SOON_SECONDS


@pytest.mark.parametrize("later", [0.0, 0.01, 0.1])
def test_sigterm_ends_a_server_during_a_reload(
    start: Callable[..., Any],
    new_bundle: Callable[[Path, int], Path],
    pictures: dict[str, bytes],
    tmp_path: Path,
    later: float,
) -> None:
    folder = new_bundle(tmp_path / "served", 1)
    running = start(folder, "--workers", 2)
    assert ask(running.url, pictures["jpeg"]).status == 200
    folder.rename(tmp_path / "old")
    new_bundle(folder, 2)
    running.process.send_signal(signal.SIGHUP)
    time.sleep(later)
    began = time.monotonic()
    running.process.terminate()
    errors = running.process.communicate(timeout=WAIT_SECONDS)[1]
    assert running.process.returncode == 0 and "Traceback" not in errors
    assert time.monotonic() - began < SOON_SECONDS
