"""Whether this machine's compiler makes the FP8 kernels right: each against plain torch on the same GPU, in a second at start.

Compilers for new number formats have faults that show in wrong bytes, not in errors (see `harness.fp8.cuda_kernels`), and a
run would train on without a word. A kernel that is wrong, or can't be built, gives its place to plain torch.
"""

import math
from collections.abc import Callable

import torch

from harness.fp8 import kernels
from harness.fp8.kernels import GRADIENT, PLAIN, VALUE

SHAPE = (400, 528)
"""Whole tiles and parts of tiles."""
ROUNDED_OTHERWISE = 0.01
"""Share of the values that may fall on the other side of a rounding step, where a sigmoid is computed before."""
SIGMOID = 1e-4
"""How far, relatively, sigmoids may lie apart."""

Results = tuple[torch.Tensor, ...]


def faulty_kernels(device: torch.device) -> list[str]:
    """Find the kernels that are wrong on this CUDA device, and let plain torch stand in for them. Sentences for the log."""
    by_problem: dict[str, list[str]] = {}
    for name, check in _checks(device).items():
        try:
            problem = check()
        except ModuleNotFoundError as error:
            problem = f"{error}: pip install 'harness[gpu]'"
        except Exception as error:  # whatever a compiler or driver may raise, plain torch goes on
            problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        if problem:
            PLAIN.add(name)
            by_problem.setdefault(problem, []).append(name)
    return [
        f"train.precision=fp8: not usable here are the kernels {', '.join(names)} ({problem}); plain torch stands in, slower"
        for problem, names in by_problem.items()
    ]


def _checks(device: torch.device) -> dict[str, Callable[[], str]]:
    """By kernel: a function that returns what is wrong with it, or nothing."""
    rows, columns = SHAPE
    generator = torch.Generator(device).manual_seed(0)
    x, wide = (
        torch.randn(rows, n, device=device, generator=generator).to(torch.bfloat16) for n in (columns, 2 * columns)
    )
    scale, small = torch.tensor(100.0, device=device), torch.tensor(20.0, device=device)

    def cast_into() -> str:
        out = torch.zeros(SHAPE, dtype=VALUE, device=device)
        kernels.cast_into(x.float(), scale, out)
        return _differing((out,), kernels.plain_cast_both(x, scale, VALUE)[:1])

    def cast_both() -> str:
        problems = (
            _differing(kernels.cast_both(x, scale, dtype), kernels.plain_cast_both(x, scale, dtype))
            for dtype in (VALUE, GRADIENT)
        )
        return next(filter(None, problems), "")

    def swiglu_largest() -> str:
        return _apart(kernels.swiglu_largest(wide), kernels.plain_swiglu_largest(wide))

    def swiglu_backward_largest() -> str:
        return _apart(kernels.swiglu_backward_largest(wide, x), kernels.plain_swiglu_backward_largest(wide, x))

    def swiglu_cast() -> str:
        return _differing((kernels.swiglu_cast(wide, small),), (kernels.plain_swiglu_cast(wide, small),))

    def swiglu_backward_cast() -> str:
        arguments = (wide, x, scale, small)
        return _differing(kernels.swiglu_backward_cast(*arguments), kernels.plain_swiglu_backward_cast(*arguments))

    checks = cast_into, cast_both, swiglu_largest, swiglu_cast, swiglu_backward_largest, swiglu_backward_cast
    return {check.__name__: check for check in checks}


def _apart(found: torch.Tensor, expected: torch.Tensor) -> str:
    one, other = float(found), float(expected)
    return "" if math.isclose(one, other, rel_tol=SIGMOID) else f"{one}, but {other} by plain torch"


def _differing(found: Results, expected: Results) -> str:
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        share = (one.float() != other.float()).float().mean().item()
        if share > ROUNDED_OTHERWISE:
            return f"{share:.0%} of result {number} differ from plain torch's"
    return ""
