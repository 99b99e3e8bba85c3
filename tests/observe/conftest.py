"""What the tests of observe share: boards in a folder, NVML without a GPU."""

import ctypes
import itertools
import subprocess
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest

from harness.observe.board import Board, board_path
from tests.conftest import require


@pytest.fixture
def boards(tmp_path: Path) -> Callable[[int], Board]:
    """Makes the board of a rank in tmp_path/boards."""
    return lambda rank: Board.open_for_write(board_path(tmp_path / "boards", rank))


@pytest.fixture(scope="session")
def nvml_stubs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ctypes.CDLL]:
    """The stub library as a new and as an old driver."""
    require("gcc")
    source, folder = Path(__file__).with_name("nvml_stub.c"), tmp_path_factory.mktemp("nvml")
    stubs = {}
    for name, flags in (("new", []), ("old", ["-DOLD_DRIVER"])):
        library = folder / f"{name}.so"
        subprocess.run(["gcc", "-shared", "-fPIC", *flags, "-o", library, source], check=True)
        stubs[name] = ctypes.CDLL(str(library))
    return stubs


class NvmlState:
    """Sets the stub's GPUs: call it with the lines of its state file."""

    _sequence = itertools.count(1)  # the stub delivers each number once in the life of the process

    def __init__(self, stubs: dict[str, ctypes.CDLL], path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._stubs, self._path, self._monkeypatch = stubs, path, monkeypatch
        monkeypatch.setenv("NVML_STUB_STATE", str(path))

    def __call__(self, *lines: str, driver: str = "new") -> None:
        replacement = self._path.with_suffix(".new")
        replacement.write_text("\n".join(lines) + "\n")
        replacement.rename(self._path)
        if pynvml.nvmlLib is not self._stubs[driver]:
            self._monkeypatch.setattr(pynvml, "nvmlLib", self._stubs[driver])
            self._monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})

    def event(self, gpu: int, xid: int) -> str:
        """The line for an XID event that has not happened before."""
        return f"xid {next(self._sequence)} {gpu} {xid}"


@pytest.fixture
def nvml(nvml_stubs: dict[str, ctypes.CDLL], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NvmlState:
    """pynvml with the stub loaded."""
    return NvmlState(nvml_stubs, tmp_path / "nvml.state", monkeypatch)


@pytest.fixture
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without libnvidia-ml.so.1, even where there is one."""

    def refuse(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(pynvml, "CDLL", refuse)
