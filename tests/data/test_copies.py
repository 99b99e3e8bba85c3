import os
from pathlib import Path

import pytest

from harness.data.copies import LocalCopy, OpenFiles, mount_point
from harness.data.token_files import open_source
from tests.data.conftest import write_token_file


def test_a_link_belongs_to_the_mount_that_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/proc/self/status")
    assert mount_point(tmp_path / "link") == "/proc"
    write_token_file(tmp_path / "web", [[1, 2, 3]], "0.ds")
    source = open_source("web", tmp_path / "web")
    copy = LocalCopy(source, [str(tmp_path / "web" / "0.ds"), str(tmp_path / "link")], OpenFiles(verify=True))
    assert [copy.mount(0), copy.mount(1)] == [mount_point(tmp_path), "/proc"]


def test_a_handle_in_use_outlives_its_place_among_the_open_files(tmp_path: Path) -> None:
    path = str(write_token_file(tmp_path / "web", [[1, 2, 3]], "0.ds"))
    files = OpenFiles(verify=True)
    handle = files.take(path, 6)
    assert files.take(path, 6) is handle
    number = handle.number
    files.forget(path)
    again = files.take(path, 6)
    assert again is not handle and again.number != number, "the first is still open, and so has its number"
    del handle
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
