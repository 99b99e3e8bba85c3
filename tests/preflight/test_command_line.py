"""`python -m harness.preflight` as it is typed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from harness.preflight import check_storage
from harness.preflight.__main__ import main
from harness.preflight.steps import STEPS
from tests.tiny import END, write_tokens

LIGHT = "config,data,storage,gpus,slurm"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("data") / "tokens", documents=20_000)


def overrides(tokens: Path, runs_dir: Path) -> list[str]:
    return ["+exp=tiny", f"runs_dir={runs_dir}", f"data.sources.demo.path={tokens}", f"data.eos_token_id={END}"]


def test_help_and_list_need_nothing_heavy() -> None:
    code = "import sys\nfrom harness.preflight.__main__ import main\nmain(['--list'])\nprint(sorted({'torch','hydra','omegaconf','submitit','numpy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *listed, heavy = result.stdout.splitlines()
    assert [line.split()[0] for line in listed] == [step.name for step in STEPS]
    assert heavy == "[]"


def test_the_light_steps_do_without_torch_and_leave_nothing(tokens: Path, tmp_path: Path) -> None:
    arguments = [*overrides(tokens, tmp_path / "runs"), "--only", LIGHT, "--json", str(tmp_path / "found.json")]
    code = (
        f"import sys\nfrom harness.preflight.__main__ import main\nprint(main({arguments!r}), 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:5]] == [
        ["config", "ok"], ["data", "ok"], ["storage", "ok"], ["gpus", "skipped"], ["slurm", "skipped"],
    ]  # fmt: skip
    assert lines[5:] == ["nothing failed", "0 False"]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["passed"] and [step["name"] for step in found["steps"]] == LIGHT.split(",")
    assert found["steps"][0]["facts"]["plan"]["steps"] == 120
    assert sorted(os.listdir(tmp_path)) == ["found.json"]


def test_all_that_is_wrong_with_the_config_is_told_at_once_and_nothing_else_is_tried(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["+exp=tiny", "train.global_batch_size=17", "optim.lr=-1", "--only", "storage,resume"]) == 1
    said = capsys.readouterr().out
    assert "config   FAILED" in said and "train.global_batch_size=17" in said and "optim.lr=-1.0" in said
    assert said.count("skipped     0.0 s  needs a config that works") == 2
    assert said.endswith("FAILED: config. Do not launch before that is solved\n")


def test_the_plan_is_shown_on_demand_and_its_warnings_always(
    tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["model.model_type=olmo2", "model.no_rope_layer_interval=0", "parallel.tp=2"]
    assert main([*overrides(tokens, tmp_path), *model, "--only", "config", "-v"]) == 0
    said = capsys.readouterr().out
    assert "config   warning" in said and "- parallel.tp=2: olmo2 has no tensor-parallel plan" in said
    assert "| Plan of run tiny" in said and said.endswith("nothing failed; look at the warnings of config\n")


def test_a_step_that_crashes_fails_alone(
    tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(subject: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(check_storage, "check_storage", crash)
    assert main([*overrides(tokens, tmp_path), "--only", "storage,slurm"]) == 1
    said = capsys.readouterr().out
    assert "storage  FAILED" in said and "RuntimeError: planted" in said and "Traceback" in said
    assert "slurm    skipped" in said and "config" not in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "data,gpu"], "no such step as gpu; there are config, data, weights"),
        (["train.steps=9", "--only", "gpu", "optim.lr=1"], "no such step as gpu"),
        (["--json", "/nowhere/found.json"], "/nowhere/found.json: no such folder"),
    ],
)
def test_bad_options_are_named(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["+exp=tiny", *arguments])
    assert ended.value.code == 2 and says in capsys.readouterr().err


@pytest.mark.e2e
def test_told_to_end_it_takes_the_small_run_with_it(tokens: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness.preflight", *overrides(tokens, tmp_path / "runs"), "--only", "resume"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    preflight = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    mine = psutil.Process(preflight.pid)

    def training() -> bool:
        return any("harness.train" in " ".join(child.cmdline()) for child in mine.children(recursive=True))

    deadline = time.monotonic() + 60
    while not training():
        assert preflight.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    below = mine.children(recursive=True)
    boards = {child.environ()["HARNESS_BOARD_DIR"] for child in below if "HARNESS_BOARD_DIR" in child.environ()}
    preflight.terminate()
    said, _ = preflight.communicate(timeout=30)
    assert preflight.returncode == 130 and said.endswith("stopped\n")
    gone, alive = psutil.wait_procs(below, timeout=10)
    assert len(gone) > 3 and not alive
    assert boards and not any(map(os.path.exists, boards))
    assert not list(tmp_path.glob("harness-preflight-*"))


@pytest.mark.e2e
def test_layout_and_resume_are_proven(tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = tmp_path / "found.json"
    assert main([*overrides(tokens, tmp_path / "runs"), "--only", "layout,resume", "--json", str(found)]) == 0
    said = capsys.readouterr().out
    assert "dp_shard 2 on 2 ranks equals one process (fp32, CPU)" in said
    layout, resume = json.loads(found.read_text())["steps"]
    assert layout["facts"]["verify"]["passed"]
    facts = resume["facts"]
    assert facts["resumed_from"] % 4 == 0 and facts["killed_after"] >= facts["resumed_from"] + 2
    last = str(facts["killed_after"])
    assert facts["before"][last] == facts["after"][last] and facts["before"][last]["loss"] > 0
    assert not (tmp_path / "runs").exists()
