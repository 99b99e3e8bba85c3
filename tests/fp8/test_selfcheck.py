"""The check of the kernels: on CPU, where plain torch is what is checked, with faults planted into what it calls."""

from collections.abc import Iterator

import pytest
import torch

from harness.fp8 import kernels, selfcheck
from harness.fp8.kernels import PLAIN

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_replaced() -> Iterator[None]:
    PLAIN.clear()
    yield
    PLAIN.clear()


def test_kernels_that_are_right_stay() -> None:
    assert selfcheck.faulty_kernels(CPU) == []
    assert not PLAIN


def test_a_kernel_with_wrong_bytes_gives_its_place_to_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernels.plain_cast_both

    def every_fourth_row_lost(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        both, transposed = right(x, scale, dtype)
        transposed[1::4] = 0
        return both, transposed

    monkeypatch.setattr(kernels, "cast_both", every_fourth_row_lost)
    (remark,) = selfcheck.faulty_kernels(CPU)
    assert "cast_both" in remark and "25% of result 1" in remark
    assert {"cast_both"} == PLAIN


def test_a_kernel_that_cannot_be_built_gives_its_place_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*arguments: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("ptxas failed")

    monkeypatch.setattr(kernels, "swiglu_cast", no_compiler)
    (remark,) = selfcheck.faulty_kernels(CPU)
    assert "swiglu_cast" in remark and "RuntimeError: ptxas failed" in remark
    assert {"swiglu_cast"} == PLAIN


def test_what_is_missing_is_said_once_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(*arguments: object) -> torch.Tensor:
        raise ModuleNotFoundError("No module named 'cuda'")

    for name in ("cast_both", "swiglu_cast", "swiglu_largest"):
        monkeypatch.setattr(kernels, name, not_installed)
    (remark,) = selfcheck.faulty_kernels(CPU)
    assert (
        "kernels cast_both, swiglu_largest, swiglu_cast (No module named 'cuda': pip install 'harness[gpu]')" in remark
    )
    assert {"cast_both", "swiglu_cast", "swiglu_largest"} == PLAIN


def test_a_wrong_largest_value_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernels.plain_swiglu_backward_largest
    monkeypatch.setattr(kernels, "swiglu_backward_largest", lambda *tensors: right(*tensors) * 0.99)
    (remark,) = selfcheck.faulty_kernels(CPU)
    assert "swiglu_backward_largest" in remark and "by plain torch" in remark
