"""Output on a full disk: a process goes on, exits with its own status, and says what is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.system.output import SteadyOutput
from tests.filling import full_disk

PRINTS = """
import logging, sys, warnings
from harness.system.output import keep_printing
keep_printing()
import tqdm
logging.basicConfig(level=logging.INFO)
for n in range(3):
    print("line", n, "é" * 5000, flush=True)
    print("no flush", end="")
    logging.info("log %d", n)
    warnings.warn(f"warning {n}")
    for _ in tqdm.tqdm(range(3)):
        pass
sys.stdout.flush()
sys.__stdout__.write("the original, too")
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("options", [[], ["-u"]])
def test_nothing_that_is_printed_ends_a_process(options: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, *options, "-c", PRINTS], stdout=full, stderr=full)
    assert done.returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_without_it_python_exits_with_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", "print('x')"], stdout=full, stderr=subprocess.DEVNULL)
    assert done.returncode != 0


def test_a_reader_that_went_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", PRINTS], stdout=writing, stderr=writing)
    os.close(writing)
    assert done.returncode == 0


def test_what_is_lost_is_said_once_there_is_room(tmp_path: Path) -> None:
    with full_disk(tmp_path / "small", kilobytes=64) as disk:
        log = disk.folder / "log"
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        output = SteadyOutput(fd, clock=lambda: 0.0)
        assert output.write(b"before\n") == 7
        disk.fill()
        while log.stat().st_size < 4096:  # what is left of the block that it has
            output.write(b".")
        for _ in range(10):
            assert output.write(b"lost\n") == 5
        disk.free()
        output.write(b"after\n")
        os.close(fd)
        text = log.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "lost\n" not in text.replace("were lost", "")
    assert "(50 bytes of this output were lost" in text and "No space left on device" in text
