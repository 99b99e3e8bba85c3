"""Whether this machine can read the sources."""

import os
from pathlib import Path

from harness.config.schema import SourceConfig
from harness.data.reach import unreachable
from tests.data.staging import write_source


def sources(**paths: Path | str) -> dict[str, SourceConfig]:
    return {name: SourceConfig(path=str(path)) for name, path in paths.items()}


def test_readable_sources(tmp_path: Path) -> None:
    web = write_source(tmp_path / "web", 1)
    assert unreachable(sources(web=web, one=web / "000.ds", far="s3://bucket/x", unset=""), 5) == ([], [])


def test_every_path_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    broken, silent = unreachable(sources(gone=tmp_path / "gone", empty=tmp_path / "empty"), 5)
    assert sorted(broken) == [
        f"data.sources.empty.path={tmp_path}/empty cannot be read: No such file or directory",
        f"data.sources.gone.path={tmp_path}/gone cannot be read: No such file or directory",
    ]
    assert silent == []


def test_a_path_that_hangs_is_named_and_holds_up_nobody(tmp_path: Path) -> None:
    pipe = tmp_path / "hangs.ds"
    os.mkfifo(pipe)  # opening it for reading waits for a writer
    broken, silent = unreachable(sources(web=pipe, gone=tmp_path / "gone"), 0.2)
    assert len(broken) == 1
    assert silent == [f"data.sources.web.path={pipe} has not answered within 0 s"]
    os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))  # let the thread go
