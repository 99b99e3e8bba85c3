"""Boards lie where there is room for them."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.agent.boards import make_boards_folder
from harness.observe.board import BOARD_BYTES
from harness.run.folder import RunFolder
from harness.run.node import Node
from tests.filling import full_disk

NODE = Node("n1", "127.0.0.1", 0, ["n1"], "7", 0, on_slurm=False)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    run = RunFolder(tmp_path / "run")
    run.create()
    yield run


def test_a_new_folder_takes_the_place_of_those_of_killed_agents(run: RunFolder, tmp_path: Path) -> None:
    first = make_boards_folder(run, NODE, 2, [tmp_path])
    (first / "rank-00000.board").touch()
    second = make_boards_folder(run, NODE, 2, [tmp_path])
    assert second.is_dir() and second.parent == tmp_path and list(second.iterdir()) == []
    assert not first.exists()


def test_a_full_place_is_passed_over(run: RunFolder, tmp_path: Path) -> None:
    with full_disk(tmp_path / "shm", kilobytes=64) as shm:
        folder = make_boards_folder(run, NODE, 8, [shm.folder, tmp_path / "absent", tmp_path])
        assert folder.parent == tmp_path and list(shm.folder.iterdir()) == []
        assert make_boards_folder(run, NODE, 8, [shm.folder]).parent == run.attempts_dir


def test_no_room_anywhere_is_an_error_that_names_the_places(run: RunFolder, tmp_path: Path) -> None:
    with full_disk(tmp_path / "shm", kilobytes=64) as shm:
        full = RunFolder(shm.folder / "run")
        full.create()
        with pytest.raises(OSError, match=f"boards of 4 ranks .{shm.folder}: No space left"):
            make_boards_folder(full, NODE, 4, [shm.folder])


def test_a_board_on_a_full_disk_is_an_error_and_no_bus_error(tmp_path: Path) -> None:
    """A sparse file maps well, and kills with SIGBUS whoever touches a page that there is no room for."""
    code = (
        "import sys; from pathlib import Path; from harness.observe.board import Board, board_path\n"
        "try: Board.open_for_write(board_path(Path(sys.argv[1]), 0))\n"
        "except OSError as error: print(error.strerror)"
    )
    with full_disk(tmp_path / "shm", kilobytes=BOARD_BYTES // 2048) as shm:
        done = subprocess.run([sys.executable, "-c", code, str(shm.folder)], capture_output=True, text=True)
    assert done.returncode != -signal.SIGBUS
    assert (done.returncode, done.stdout) == (0, "No space left on device\n")
