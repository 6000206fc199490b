import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SCRIPT = """
import numpy as np
from teacher_cache.kernels import operations
from teacher_cache.kernels.compiled import cache_folder
compiled = [kernel for kernel in vars(operations).values() if hasattr(kernel, "nopython_signatures")]
compiled = [kernel for kernel in compiled if kernel.nopython_signatures]
image, brighter = np.full((2, 6), 100, np.uint8), np.empty((2, 6), np.uint8)
operations.blend_constant(image, 0, 1.5, brighter)
assert (brighter == 150).all()
print(sum(sum(kernel.stats.cache_misses.values()) for kernel in compiled), len(compiled))
"""


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def compiled_of(finished: subprocess.CompletedProcess[str]) -> tuple[int, int]:
    """How many kernels a process compiled, and how many it has."""
    assert finished.returncode == 0, finished.stderr
    count, of = map(int, finished.stdout.split())
    return count, of


def test_processes_that_start_together_compile_each_kernel_once_and_a_damaged_cache_is_rebuilt(
    tmp_path: Path,
) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: compiled_of(run(NUMBA_CACHE_DIR=str(tmp_path))), range(2)))
    kernels = both[0][1]
    assert kernels >= 9 and both[0][0] + both[1][0] == kernels
    assert compiled_of(run(NUMBA_CACHE_DIR=str(tmp_path))) == (0, kernels)
    entries = [path for path in tmp_path.rglob("*.nb?") if path.is_file()]
    assert len(entries) == 2 * kernels
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:7])
    assert compiled_of(run(NUMBA_CACHE_DIR=str(tmp_path))) == (kernels, kernels)


def test_without_a_writable_folder_every_process_compiles_and_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    finished = run(NUMBA_CACHE_DIR=str(tmp_path / "file" / "folder"))
    assert compiled_of(finished)[1] >= 9
    assert finished.stderr.count("NUMBA_CACHE_DIR") == 1


def test_the_code_is_in_the_users_cache_folder_or_else_in_a_private_temporary_one(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "NUMBA_CACHE_DIR": ""}
    compiled_of(run(**environment))
    assert list((tmp_path / "cache/limbeck/kernels").rglob("*.nbc"))
    (tmp_path / "file").touch()
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "file" / "folder"), "TMPDIR": str(tmp_path)}
    assert compiled_of(run(**environment))[0] >= 9
    private = tmp_path / f"limbeck-{os.getuid()}"
    assert list(private.rglob("*.nbc")) and not private.stat().st_mode & 0o077
    assert compiled_of(run(**environment))[0] == 0
    private.chmod(0o777)
    assert "NUMBA_CACHE_DIR" in run(**environment).stderr


def test_kernels_are_never_run_by_the_interpreter() -> None:
    finished = run(NUMBA_DISABLE_JIT="1")
    assert finished.returncode and "LimbeckError" in finished.stderr and "NUMBA_DISABLE_JIT" in finished.stderr


def test_evaluation_and_packing_do_not_import_the_compiler() -> None:
    modules = "teacher_cache.views.eval_transform, teacher_cache.packing.pack"
    script = f"import sys, {modules}; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
