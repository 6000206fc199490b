"""Start the forkserver process, and ask it for model hosts and workers."""

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

from server.ipc.spawn import BUNDLE_OPEN, MESSAGE_BYTES, HostSpec, WorkerSpec
from teacher_cache.errors import RunError

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""A process that forks must have one thread, and each worker computes on one core."""
COUNT_GPUS_WITHOUT_CUDA = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""torch then looks for GPUs without opening them, since the children of a process that has opened one cannot."""


class ModelHost:
    """Connection to the process that has read one bundle and forks its workers."""

    def __init__(self, control: socket.socket, device_type: str) -> None:
        """device_type: of the device that its workers will use."""
        self._control, self.device_type = control, device_type

    def fork(self, check_runtime: bool) -> socket.socket:
        """Start a worker and return a socket to it. Raises OSError if the host has exited."""
        connection, worker_end = socket.socketpair()
        message = json.dumps(asdict(WorkerSpec(check_runtime))).encode()
        with worker_end:
            try:
                socket.send_fds(self._control, [message], [worker_end.fileno()])
            except OSError:
                connection.close()
                raise
        return connection

    def close(self) -> None:
        """Close the connection; the process exits after its workers."""
        self._control.close()


class Supervisor:
    """Owns the forkserver process, and starts another one if it exits."""

    def __init__(self) -> None:
        self._is_used = False
        self._processes: list[subprocess.Popen[bytes]] = []
        """All forkservers; the last one is the current one."""
        self._start()

    def _start(self) -> None:
        self._control, forkserver_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with forkserver_end:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "server.workers.forkserver", str(forkserver_end.fileno())],
                pass_fds=[forkserver_end.fileno()],
                env=os.environ | ONE_THREAD | COUNT_GPUS_WITHOUT_CUDA,
                start_new_session=True,  # Ctrl-C reaches only the serving process, and close() can kill the group
            )
        self._processes.append(process)

    async def open(self, spec: HostSpec) -> ModelHost:
        """Open a bundle in a new process. Raises RunError if the bundle cannot be used."""
        self._is_used = True
        pid = self._processes[-1].pid
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):  # not reaped: close() needs its group
            self._control.close()
            self._start()
        control, host_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with host_end:
                socket.send_fds(self._control, [json.dumps(asdict(spec)).encode()], [host_end.fileno()])
            control.setblocking(False)
            reply = await asyncio.get_running_loop().sock_recv(control, MESSAGE_BYTES)
        except BaseException:  # also asyncio.CancelledError
            control.close()
            raise
        control.setblocking(True)
        if reply.startswith(BUNDLE_OPEN):
            return ModelHost(control, reply.removeprefix(BUNDLE_OPEN).decode())
        control.close()
        raise RunError(reply.decode() or f"the process that read '{spec.folder}' exited; see the log")

    def close(self, seconds: float = 10) -> None:
        """Stop the forkserver, all model hosts and all workers, and wait until they have exited.

        seconds: time after which processes that are still running are killed.
        """
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._processes[-1].wait(seconds)
        for process in self._processes:  # hosts of a forkserver that has exited may still be running
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_used:
            self._processes[-1].kill()  # it may still import torch, and has no children yet
        self.close()
