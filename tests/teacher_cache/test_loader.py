"""DataLoader workers exit when their parent process exits."""

import signal
import subprocess
import sys
import time

import psutil

from teacher_cache.loader import LOOK_SECONDS

JOB = """
import time
from torch.utils.data import IterableDataset
from teacher_cache.loader import load

class Large(IterableDataset):
    def __iter__(self):
        while True:
            yield bytes(1_000_000)  # more than a pipe holds

for _ in load(Large(), 2):
    print("begun", flush=True)
    time.sleep(60)
"""


def test_workers_exit_when_their_process_is_killed() -> None:
    process = subprocess.Popen([sys.executable, "-c", JOB], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout and process.stdout.readline() == "begun\n"
        workers = psutil.Process(process.pid).children()
        assert len(workers) == 2
        time.sleep(0.5)  # until both wait at their pipes
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
    assert psutil.wait_procs(workers, LOOK_SECONDS + 10)[1] == []
