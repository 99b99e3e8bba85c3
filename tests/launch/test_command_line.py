"""`python -m harness.launch` as it is typed: plans, scripts, refusals. Nothing is submitted here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cluster import submit
from harness.config.compose import compose
from harness.launch import __main__ as command_line
from harness.launch.launch import make_paths_absolute, run_folder
from harness.run.files import write_json
from tests.conftest import require


def launch(*arguments: str, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "harness.launch", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **(env or {})})


def test_help_needs_nothing_heavy() -> None:
    """--help must answer at once: neither torch nor Hydra is imported on the way."""
    code = "import sys; sys.argv=['x','--help']\ntry:\n  from harness.launch.__main__ import main; main()\nexcept SystemExit: pass\nprint(sorted({'torch','hydra','omegaconf','submitit','transformers'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "experiments: ablation_1b, long_context_32k, smol3b, smol3b_1node, tiny" in result.stdout


def test_planning_does_not_import_torch(tmp_path: Path) -> None:
    code = f"import sys\nfrom harness.launch.__main__ import main\nmain(['+exp=smol3b','dry_run=true','runs_dir={tmp_path}'])\nprint('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"


def test_dry_run_of_the_flagship_shows_plan_script_and_what_is_missing(tmp_path: Path) -> None:
    result = launch("+exp=smol3b", "dry_run=true", f"runs_dir={tmp_path}", env={"PATH": "/usr/bin-without-slurm"})
    assert result.returncode == 0, result.stderr
    for text in (
        "3,075,098,624",
        "#SBATCH --nodes=48",
        "data.sources.web.path",
        "sbatch is not on PATH",
        "nothing was submitted",
    ):
        assert text in result.stdout
    assert not (tmp_path / "smol3b").exists(), "a dry run leaves nothing behind"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["+exp=tiny", "train.stepz=1", "optim.lr=x"], ["train.stepz=1: no such key", "optim.lr=x"]),
        (["+exp=tiny", "train.global_batch_size=17"], ["train.global_batch_size=17: must be a multiple"]),
        (["+exp=tiny", "data.sources.demo.path=/nowhere"], ["data.sources.demo.path=/nowhere"]),
        (["+exp=tiny", "optim.lr=1e-4,2e-4"], ["add -m"]),
        (["--config-dir", "/nowhere", "+exp=tiny"], ["--config-dir /nowhere: no such folder"]),
    ],
)
def test_bad_input_is_named_and_nothing_is_launched(tmp_path: Path, arguments: list[str], says: list[str]) -> None:
    result = launch(*arguments, f"runs_dir={tmp_path}/runs")
    assert result.returncode == 2
    assert all(text in result.stderr for text in says), result.stderr
    assert "Traceback" not in result.stderr


def test_runs_dir_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = launch("+exp=tiny", f"runs_dir={tmp_path}/file/runs")
    assert result.returncode == 3
    assert "runs_dir/run.name: can't write to" in result.stderr


def test_a_sweep_names_its_runs_and_sums_them_up(tmp_path: Path) -> None:
    result = launch("-m", "+exp=tiny", "optim.lr=1e-4,2e-4", "dry_run=true", f"runs_dir={tmp_path}")
    assert result.returncode == 0
    assert "Plan of run tiny,lr=0.0001" in result.stdout and "Plan of run tiny,lr=0.0002" in result.stdout
    assert result.stdout.splitlines()[-3:] == [
        "run             result",
        "tiny,lr=0.0001  dry run",
        "tiny,lr=0.0002  dry run",
    ]


def test_one_bad_run_of_a_sweep_stops_all_before_anything_is_submitted(tmp_path: Path) -> None:
    result = launch("-m", "+exp=tiny", "train.global_batch_size=16,17", f"runs_dir={tmp_path}/runs")
    assert result.returncode == 2
    assert "tiny,global_batch_size=17: train.global_batch_size=17" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_paths_mean_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose(["+exp=tiny", "data.tokenizer=tok"])
    make_paths_absolute(config)
    paths = (config.runs_dir, config.monitor.targets_dir, config.data.sources["demo"].path, config.data.tokenizer)
    assert paths == tuple(str(tmp_path / name) for name in ("runs", "runs/.targets", "corpus/tokens", "tok"))


@pytest.mark.slurm
def test_a_dead_controller_is_named_at_once(tmp_path: Path) -> None:
    require("scontrol", "sbatch")
    (tmp_path / "slurm.conf").write_text(
        "ClusterName=dead\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=9\nMessageTimeout=1\n"
    )
    result = launch("+exp=smol3b", f"runs_dir={tmp_path}/runs", env={"SLURM_CONF": str(tmp_path / "slurm.conf")})
    assert result.returncode == 2
    assert "no Slurm controller answers" in result.stderr


class TestRelaunch:
    """Launching a name that exists. The run's job and checkpoints are made up of files; the scheduler is not asked."""

    @pytest.fixture(autouse=True)
    def _run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.overrides = ["+exp=tiny", f"runs_dir={tmp_path}"]
        config = compose(self.overrides)
        self.run = run_folder(config)
        self.run.create()
        self.run.save_config(config)
        self.run.update_record(job_id="77", run_id="tiny-1")
        monkeypatch.setattr(submit, "is_active", lambda config, job_id: None)

    def checkpoint(self, step: int) -> None:
        folder = self.run.checkpoints_dir / f"step-{step:08d}"
        folder.mkdir()
        write_json(folder / "manifest.json", {})

    def launch(self, capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, str]:
        code = command_line.main([*self.overrides, *overrides])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    def test_running_already(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(submit, "is_active", lambda config, job_id: "RUNNING")
        code, output = self.launch(capsys)
        assert code == 2
        assert "run.name=tiny: already running as job 77" in output and "choose another run.name" in output

    def test_two_launches_at_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        import fcntl

        with open(self.run.path / ".launch.lock", "w") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            code, output = self.launch(capsys)
        assert code == 2 and "another launch of this run is under way" in output

    def test_another_model_is_refused_with_the_difference(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.checkpoint(20)
        code, output = self.launch(capsys, "model.hidden_size=256", "data.seed=9")
        assert code == 2
        assert "resumes from step 20" in output
        assert "model.hidden_size=256: the run was started with 128" in output
        assert "data.seed=9: the run was started with 0" in output
        assert self.run.load_config().model.hidden_size == 128

    def test_finished_run_has_nothing_to_do(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.checkpoint(120)
        code, output = self.launch(capsys)
        assert code == 0 and "has finished all 120 steps" in output

    def test_missing_data_leaves_the_old_config(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, output = self.launch(capsys, "optim.lr=1e-4", "data.sources.demo.path=/nowhere")
        assert code == 2 and "/nowhere" in output
        assert self.run.load_config().optim.lr == 3e-3
