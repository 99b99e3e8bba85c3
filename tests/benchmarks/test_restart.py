"""What a restart costs: a real run on CPU that is killed and comes back, and how failures are told."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import processes, restart
from harness.config.compose import compose
from harness.run.folder import RunFolder


def test_the_table_has_both_starts_and_an_ordinary_step() -> None:
    text = restart.render(restart.Found(cold=31.234, warm=4.5, step=0.3214, until_cold=50, until_warm=21), "1 x H200")
    assert "| launch, empty caches | 31.23 | 50.0 |" in text
    assert "| after kill -9 of a rank | 4.50 | 21.0 |" in text
    assert "ordinary step takes 0.321 s" in text and text.startswith("    1 x H200; Python ")


def test_the_caches_are_the_runs_own_and_on_gpus_the_model_is_a_large_one(tmp_path: Path) -> None:
    assert all(Path(path).parent == tmp_path for path in restart.caches(tmp_path).values())
    given = restart.overrides(restart.setting(2, 30), tmp_path, tmp_path, restart.RUN)
    config = compose([*given, f"model.vocab_size={restart.VOCAB}"])
    assert config.model.hidden_size == 2048 and config.model.vocab_size == 4096 and config.data.document_mask
    assert config.cluster.gpus_per_node == 2 and config.train.compile


def test_only_ranks_of_the_run_are_found(tmp_path: Path) -> None:
    """Neither other runs' ranks nor a process that merely names the run."""
    sleep = "import time; print('up', flush=True); time.sleep(60)"
    names = [["-m", "harness.train", str(tmp_path / name)] for name in ("run", "run2")]
    names.append(["-m", "harness.agent.launcher", str(tmp_path / "run")])
    started = [
        subprocess.Popen([sys.executable, "-c", sleep, *own], stdout=subprocess.PIPE) for own in names
    ]  # fmt: skip
    try:
        for process in started:
            assert process.stdout is not None and process.stdout.readline() == b"up\n"
        assert restart.ranks(RunFolder(tmp_path / "run")) == [started[0].pid]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_a_run_that_can_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart, "overrides", lambda *unused: ["data.seq_lne=3"])
    with pytest.raises(restart.Failed, match="seq_lne"):
        asyncio.run(restart.measure(0, 10, tmp_path, []))


@pytest.mark.e2e
def test_a_killed_rank_comes_back_and_both_first_steps_are_read(tmp_path: Path) -> None:
    found = asyncio.run(restart.measure(0, 10, tmp_path, []))
    assert found.cold > 0 and found.warm > 0 and found.step > 0
    assert found.until_cold > found.cold and found.until_warm > found.warm
    run = RunFolder(tmp_path / restart.RUN)
    failed = [event["why"] for event in run.events() if event["event"] == "rank_failed"]
    assert failed == ["was killed by SIGKILL"]
    assert processes.poll(lambda: None if restart.ranks(run) else True, time.monotonic() + 20)
