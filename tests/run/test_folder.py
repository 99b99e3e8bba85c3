"""The run folder and its ledger."""

import os
from pathlib import Path

import pytest

from harness.config.compose import compose
from harness.run.folder import RunFolder, RunFolderError, find_run


def test_config_survives_the_round_trip(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a")
    run.create()
    config = compose(["+exp=smol3b", "cluster.sbatch.reservation=x", f"runs_dir={tmp_path}"])
    run.save_config(config)
    loaded = run.load_config()
    assert loaded == config
    assert loaded.monitor.targets_dir == f"{tmp_path}/.targets", "resolved: the job must not need the launcher's folder"


def test_folder_without_a_config_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="not a run folder"):
        RunFolder(tmp_path).load_config()


def test_a_folder_in_the_current_one_does_not_hide_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("harness", "runs/harness", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    assert find_run("harness", Path("runs")) == Path("runs/harness")
    assert find_run("./harness", Path("runs")) == Path("harness")
    assert find_run("elsewhere", Path("runs")) == Path("elsewhere")
    assert find_run("none", Path("runs")) == Path("runs/none")


def test_a_config_that_is_cut_short_is_not_filled_up_with_defaults(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.save_config(compose(["+exp=tiny"]))
    whole = run.config_path.read_text().splitlines(keepends=True)
    assert run.load_config().train.steps == 120
    for lines in range(len(whole)):
        run.config_path.write_text("".join(whole[:lines]))
        with pytest.raises(RunFolderError, match="cut short"):
            run.load_config()


def test_broken_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train: [")
    with pytest.raises(RunFolderError, match=r"config\.yaml can't be used: not YAML"):
        RunFolder(tmp_path).load_config()


def test_folder_that_can_not_be_made_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"runs_dir/run\.name"):
        RunFolder(tmp_path / "file" / "run").create()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_loses_the_event_and_not_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    from harness.run.folder import Ledger

    ledger = Ledger(Path("/dev/full"), 0)
    ledger.write("checkpoint", step=3)
    assert "could not write event checkpoint" in capsys.readouterr().out
    assert [event["event"] for event in ledger.unwritten()] == ["checkpoint"] and not ledger.catch_up()


def test_events_of_a_full_disk_come_late_with_one_that_says_so(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.events_path.mkdir()  # nothing can be appended there
    ledger = run.ledger(3, "n1")
    ledger.write("restart", step=20)
    ledger.write("train_start", step=20)
    assert [event["event"] for event in ledger.unwritten()] == ["restart", "train_start"]
    run.events_path.rmdir()
    assert ledger.catch_up(21)
    assert [event["event"] for event in run.events()] == ["restart", "train_start", "disk_full"]
    said = run.events()[-1]
    assert (said["file"], said["late"], said["lost"], said["step"]) == ("events.jsonl", 2, 0, 21)
    assert said["since"] <= said["until"] and "Is a directory" in said["why"]
    assert ledger.catch_up() and len(run.events()) == 3


def test_excluded_nodes_stay_excluded(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.exclude_node("n2", "down") is True
    assert run.exclude_node("n2", "again") is False
    assert RunFolder(tmp_path).excluded_nodes() == {"n2": "down"}


def test_events_carry_attempt_step_and_node(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.ledger(3, "n1").write("checkpoint", step=20, seconds=1.5)
    (event,) = run.events()
    assert (event["event"], event["attempt"], event["step"], event["node"], event["seconds"]) == (
        "checkpoint",
        3,
        20,
        "n1",
        1.5,
    )
    assert event["time"] > 1e9
