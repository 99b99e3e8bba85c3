import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.observe.targets import TargetRegistration
from tests.waiting import wait_for

Register = Callable[..., TargetRegistration]


@pytest.fixture
def register(tmp_path: Path) -> Iterator[Register]:
    made: list[TargetRegistration] = []

    def make(folder: Path = tmp_path / "targets", address: tuple[str, int] = ("10.0.0.7", 9000)) -> TargetRegistration:
        made.append(
            TargetRegistration(
                folder, address, run="smol", attempt=3, node="n07", slurm_job_id="412", renew_seconds=0.02
            )
        )
        return made[-1]

    yield make
    for registration in made:
        registration.close()


def content(registration: TargetRegistration) -> dict:
    return json.loads(registration.path.read_text())


def test_registers_where_discovery_looks(register: Register, tmp_path: Path) -> None:
    registration = register()
    wait_for(registration.path.exists)
    assert registration.path == tmp_path / "targets" / "smol.3.n07.json"
    record = content(registration)
    assert record["targets"] == ["10.0.0.7:9000"]
    assert record["labels"] == {"run": "smol", "attempt": "3", "slurm_job_id": "412", "node": "n07"}
    assert record["lease"] == pytest.approx(time.time(), abs=30)


def test_an_ipv6_address_is_bracketed(register: Register) -> None:
    registration = register(address=("::1", 9000))
    wait_for(registration.path.exists)
    assert content(registration)["targets"] == ["[::1]:9000"]


def test_the_lease_is_renewed(register: Register) -> None:
    registration = register()
    wait_for(registration.path.exists)
    first = content(registration)["lease"]
    wait_for(lambda: content(registration)["lease"] > first)


def test_a_reader_never_sees_half_a_file(register: Register) -> None:
    registration = register()
    wait_for(registration.path.exists)
    for _ in range(500):
        assert content(registration)["targets"]


def test_a_clean_exit_withdraws_the_target_before_the_file_goes(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    registration = register()
    wait_for(registration.path.exists)
    seen, unlink = [], Path.unlink

    def watched(path: Path, missing_ok: bool = False) -> None:
        if path == registration.path:
            seen.append(content(registration)["targets"])
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    registration.close()
    assert seen == [[]]
    assert not list(registration.path.parent.iterdir())


def test_a_folder_that_cannot_be_written_is_logged_once_and_tried_again(
    register: Register, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "targets"
    folder.write_text("in the way")
    registration = register(folder)
    wait_for(lambda: bool(caplog.messages))
    time.sleep(0.2)
    assert len([message for message in caplog.messages if "could not register" in message]) == 1
    folder.unlink()
    wait_for(registration.path.exists)


def test_a_folder_that_goes_away_comes_back(register: Register) -> None:
    registration = register()
    wait_for(registration.path.exists)
    aside = registration.path.parent.with_name("aside")
    registration.path.parent.rename(aside)
    wait_for(registration.path.exists)


def test_close_never_raises(register: Register, tmp_path: Path) -> None:
    folder = tmp_path / "targets"
    folder.write_text("in the way")
    register(folder).close()
