"""Azurite, Microsoft's Azure storage emulator, on loopback."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wait import until

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Default account of Azurite, from its documentation."""


def find_azurite() -> str | None:
    """Path of Azurite as `make test` installs it, else from PATH; None if it is not installed."""
    return shutil.which("azurite-blob", path=Path(sys.prefix, "node_modules", ".bin")) or shutil.which(
        "azurite-blob"
    )


@contextmanager
def running_azurite(program: str) -> Iterator[str]:
    """Run Azurite with in-memory storage; yields the URL of its account."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    bind = ("--blobHost", "127.0.0.1", "--blobPort", str(port))
    command = [program, *bind, "--inMemoryPersistence", "--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            until(lambda: server.poll() is None and _accepts_connections(port))
            yield f"http://127.0.0.1:{port}/{ACCOUNT}"
        finally:
            server.kill()


def _accepts_connections(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
