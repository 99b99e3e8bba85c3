"""The kernels of `harness.fp8.kernels` on CUDA: kernels.cu, compiled for the GPU by CUDA's run-time compiler at first use.

Not in Triton, which leaves to its compiler how a tile is turned around: kernels that turned several tiles of bytes came out
of Triton 3.6 with wrong bytes in every fourth row. Compiling takes well under a second, and neither headers nor nvcc.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from cuda.bindings import driver, nvrtc

SOURCE = Path(__file__).with_name("kernels.cu")
ROWS, COLUMNS, THREADS = 128, 64, 256
"""Of a tile, and of a block, as in kernels.cu."""
QUAD = 4
"""Values that a thread takes at once."""


def cast(x: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> None:
    """fp32 to e4m3. A rank's part of a weight may have any number of rows, even none."""
    flat = x.view(-1)
    _check(flat, torch.float32)
    if blocks := _blocks(flat.numel()):
        _launch("cast", (min(blocks, _one_wave(x)), 1), flat, scale, out, flat.numel())


def cast_both(x: torch.Tensor, scale: torch.Tensor, out: torch.Tensor, transposed: torch.Tensor) -> None:
    _check(x, torch.bfloat16)
    kernel = "cast_both_value" if out.dtype == torch.float8_e4m3fn else "cast_both_gradient"
    _launch(kernel, _tiles(*x.shape), x, scale, out, transposed, *x.shape)


def swiglu_largest(gate_up: torch.Tensor, largest: torch.Tensor) -> None:
    """`largest`: fp32, 0-dim, zero before."""
    _check(gate_up, torch.bfloat16)
    rows, columns = gate_up.shape[0], gate_up.shape[1] // 2
    _launch("swiglu_largest", _stripes(gate_up, columns), gate_up, largest, rows, columns)


def swiglu_cast(gate_up: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> None:
    _check(gate_up, torch.bfloat16)
    _launch("swiglu_cast", _stripes(gate_up, out.shape[1]), gate_up, scale, out, *out.shape)


def swiglu_backward_largest(gate_up: torch.Tensor, gradient: torch.Tensor, largest: torch.Tensor) -> None:
    """`largest`: fp32, 0-dim, zero before."""
    _check(gate_up, torch.bfloat16)
    _check(gradient, torch.bfloat16)
    grid = _stripes(gate_up, gradient.shape[1])
    _launch("swiglu_backward_largest", grid, gate_up, gradient, largest, *gradient.shape)


def swiglu_backward_cast(
    gate_up: torch.Tensor,
    gradient: torch.Tensor,
    gradient_scale: torch.Tensor,
    value_scale: torch.Tensor,
    out: torch.Tensor,
    transposed: torch.Tensor,
    value_transposed: torch.Tensor,
) -> None:
    _check(gate_up, torch.bfloat16)
    _check(gradient, torch.bfloat16)
    outputs = out, transposed, value_transposed
    scales = gradient_scale, value_scale
    _launch("swiglu_backward_cast", _tiles(*gradient.shape), gate_up, gradient, *scales, *outputs, *gradient.shape)


def _check(x: torch.Tensor, dtype: torch.dtype) -> None:
    if x.dtype != dtype or not x.is_contiguous() or x.data_ptr() % 16 or any(size % QUAD for size in x.shape):
        raise ValueError(
            f"{x.dtype} {list(x.shape)} with strides {x.stride()} at {x.data_ptr():#x}: must be {dtype}, contiguous, "
            f"aligned, and its sizes multiples of {QUAD}"
        )


def _tiles(rows: int, columns: int) -> tuple[int, int]:
    return -(-columns // COLUMNS), -(-rows // ROWS)


def _stripes(x: torch.Tensor, columns: int) -> tuple[int, int]:
    """A grid that covers `columns` and goes through the rows of `x` in stripes, all blocks at once."""
    across = _blocks(columns)
    return max(1, min(x.shape[0], _one_wave(x) // across)), across


def _blocks(values: int) -> int:
    return -(-values // (QUAD * THREADS))


def _one_wave(x: torch.Tensor) -> int:
    """Blocks that the device can run at once."""
    device = torch.cuda.get_device_properties(x.device)
    return int(device.multi_processor_count * device.max_threads_per_multi_processor // THREADS)


def _launch(kernel: str, grid: tuple[int, int], *arguments: Any) -> None:
    """Queue a kernel on the device of the tensors, which must be the current one. Raises RuntimeError."""
    values = tuple(a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments)
    types = tuple(ctypes.c_void_p if isinstance(a, torch.Tensor) else ctypes.c_longlong for a in arguments)
    stream = torch.cuda.current_stream().cuda_stream
    function = _function(kernel, torch.cuda.current_device())
    _checked(driver.cuLaunchKernel(function, *grid, 1, THREADS, 1, 1, 0, stream, (values, types), 0))


@cache
def _function(kernel: str, device: int) -> Any:
    return _checked(driver.cuModuleGetFunction(_module(device), kernel.encode()))


@cache
def _module(device: int) -> Any:
    major, minor = torch.cuda.get_device_capability(device)
    program = _checked(nvrtc.nvrtcCreateProgram(SOURCE.read_bytes(), SOURCE.name.encode(), 0, [], []))
    options = [f"--gpu-architecture=sm_{major}{minor}".encode(), b"--std=c++17"]
    result = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if result[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
        _checked(nvrtc.nvrtcGetProgramLog(program, log))
        raise RuntimeError(f"{SOURCE.name} does not compile: {log.decode(errors='replace').strip()}")
    binary = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program))
    _checked(nvrtc.nvrtcGetCUBIN(program, binary))
    _checked(nvrtc.nvrtcDestroyProgram(program))
    return _checked(driver.cuModuleLoadData(binary))


def _checked(result: tuple[Any, ...]) -> Any:
    """What a call of CUDA returns beside its error. Raises RuntimeError with the error's name."""
    error, *values = result
    if int(error) != 0:
        raise RuntimeError(f"CUDA: {error.name}")
    return values[0] if values else None
