import pytest
import torch
from torch.backends import cudnn

from teacher_cache.distributed.device import backend_flags, is_out_of_memory


def flags() -> tuple[str, bool, bool]:
    return torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark


@pytest.mark.parametrize("benchmark", [False, True])
@pytest.mark.parametrize(
    ("dtype", "matmul", "convolution"),
    [("float32", "highest", False), ("tf32", "high", True), ("bfloat16", "highest", False)],
)
def test_flags_are_set_in_a_block_and_restored_after_it_even_by_an_error(
    dtype: str, matmul: str, convolution: bool, benchmark: bool
) -> None:
    before = flags()
    with backend_flags("tf32" if dtype == "float32" else "float32", not benchmark):
        outer = flags()
        with pytest.raises(ZeroDivisionError), backend_flags(dtype, benchmark):
            assert flags() == (matmul, convolution, benchmark)
            raise ZeroDivisionError
        assert flags() == outer
    assert flags() == before


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 2147483648"),
        RuntimeError("could not create a primitive"),
    ],
    ids=lambda error: str(error)[:30] or "MemoryError",
)
def test_each_librarys_out_of_memory_error_is_recognized(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("could not create a primitive descriptor for a convolution forward propagation primitive"),
        RuntimeError("Expected all tensors to be allocated on the same device"),
        ValueError("Got invalid dimensions"),
    ],
)
def test_other_errors_are_not_out_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)
