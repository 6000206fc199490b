"""The nursery from outside: started with the server, asked for holders of bundles, and for their workers."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from typing import Self

from server.ipc.spawn import BUNDLE_OPEN, MESSAGE_BYTES, HostSpec
from teacher_cache.errors import RunError

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""A process that forks must have one thread; and each worker is one lane of the whole machine."""


class ModelHost:
    """One opened bundle in a process of its own, which forks workers."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control

    def fork(self, word: bytes) -> socket.socket:
        """A socket to a new worker. word: nursery.FIRST or NEXT. Raises OSError where the holder is gone."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [word], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours

    def close(self) -> None:
        """Fork no more; the process ends after its workers."""
        self._control.close()


class Supervisor:
    """Owns the nursery process, and starts another should it die."""

    def __init__(self) -> None:
        self._asked = False
        self._nurseries: list[subprocess.Popen[bytes]] = []
        self._start()

    def _start(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "server.workers.forkserver", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | ONE_THREAD,
                start_new_session=True,  # a Ctrl-C is the serving process's to hear; and its group is all below it
            )
        self._nurseries.append(self._process)

    async def open(self, order: HostSpec) -> ModelHost:
        """Have a bundle opened; raises RunError with what is wrong with it."""
        self._asked = True
        if os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):  # its number stays taken
            self._control.close()
            self._start()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                socket.send_fds(self._control, [json.dumps(asdict(order)).encode()], [theirs.fileno()])
            ours.setblocking(False)
            said = await asyncio.get_running_loop().sock_recv(ours, MESSAGE_BYTES)
        except BaseException:  # whoever asked may be gone meanwhile
            ours.close()
            raise
        ours.setblocking(True)
        if said == BUNDLE_OPEN:
            return ModelHost(ours)
        ours.close()
        raise RunError(said.decode() or f"the process that read '{order.folder}' died; its messages say why")

    def close(self, seconds: float = 10) -> None:
        """End the nursery and with it all that still runs, and wait until it has.

        seconds: after which whatever does not end by itself, such as a process that was stopped, is killed.
        """
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        for nursery in self._nurseries:  # one that died may have left holders
            with contextlib.suppress(ProcessLookupError):
                os.killpg(nursery.pid, signal.SIGKILL)
            nursery.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._asked:
            self._process.kill()  # it may be importing for seconds yet, and nobody depends on it
        self.close()
