"""The batch script, and what a job must not inherit."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest
from submitit import LocalExecutor

from harness import slurm
from harness.cluster.submit import SubmissionError, batch_script, is_active, visible_gpus
from harness.config.compose import compose
from harness.run.folder import RunFolder


def script(tmp_path: Path, *overrides: str, excluded: dict[str, str] | None = None) -> str:
    run = RunFolder(tmp_path / "run")
    run.create()
    for node, why in (excluded or {}).items():
        run.exclude_node(node, why)
    return batch_script(compose(["+exp=smol3b", f"runs_dir={tmp_path}", *overrides]), run)


def test_one_agent_per_node_requeued_and_warned(tmp_path: Path) -> None:
    text = script(tmp_path)
    for line in (
        "#SBATCH --nodes=48",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --cpus-per-task=64",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --signal=USR2@120",
        "#SBATCH --time=7-00:00:00",
    ):
        assert line in text.splitlines()
    assert "harness.recovery.batch" in text and "srun --" not in text and "submitit.core" not in text


@pytest.mark.parametrize("status", [0, 1, 2, 66, 67, 70, 126, 127, 137, 143])
def test_the_shell_acts_only_where_python_could_not(tmp_path: Path, status: int) -> None:
    lines = script(tmp_path, "cluster.max_restarts_without_progress=5").splitlines()
    command = next(i for i, line in enumerate(lines) if "harness.recovery.batch" in line)
    after = [line for line in lines[command + 1 :] if line and not line.startswith("#")]
    assert len(after) == 1
    stand_in = 'harness_fallback() { echo "fallback $*"; }'
    shell = f"{stand_in}\n(exit {status})\n{after[0]}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    if status in (0, 66, 67, 70, 143):
        assert (done.returncode, done.stdout) == (status, "")
    else:
        assert done.stdout == f"fallback {status} {tmp_path}/run 5\n"


def test_any_flag_reaches_sbatch(tmp_path: Path) -> None:
    text = script(
        tmp_path, "cluster.partition=gpu", "cluster.sbatch.reservation=smol", "cluster.sbatch.exclusive=true",
        "cluster.sbatch.mail-type=null", "cluster.setup=['module load cuda']",
    )  # fmt: skip
    assert "#SBATCH --partition=gpu" in text and "#SBATCH --reservation=smol" in text
    assert "#SBATCH --exclusive\n" in text and "mail-type" not in text
    assert text.index("module load cuda") < text.index("harness.recovery.batch")
    assert "wckey" not in text


def test_lost_nodes_are_kept_out(tmp_path: Path) -> None:
    text = script(tmp_path, "cluster.exclude=[n9]", excluded={"n2": "down"})
    assert "#SBATCH --exclude=n2,n9" in text


def test_script_is_valid_bash(tmp_path: Path) -> None:
    text = script(tmp_path, "run.name='a=b,c'")
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_variables_of_a_surrounding_job_stay_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPU_BIND", "cores")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    with slurm.clean_environment():
        assert [key for key in os.environ if key.startswith("SLURM_")] == ["SLURM_CONF"]
    assert os.environ["SLURM_JOB_ID"] == "12"


def test_a_process_of_another_kind_is_no_running_job() -> None:
    config = compose(["+exp=tiny"])
    assert is_active(config, str(os.getpid())) is None
    assert is_active(config, "999999999") is None


def test_without_slurm_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(slurm.SlurmError, match=r"sbatch is not on PATH.*cluster=local"):
        slurm.run("sbatch", "--version")


def test_a_controller_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "scontrol").write_text("#!/bin/sh\nexec sleep 30\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "COMMAND_SECONDS", 0.2)
    with pytest.raises(slurm.SlurmError, match="is slurmctld up"):
        slurm.job("1")


def test_a_run_on_this_machine_keeps_to_the_visible_gpus() -> None:
    assert visible_gpus(2, "3,1,0") == (3, 1)
    with pytest.raises(SubmissionError, match=r"cluster\.gpus_per_node=2: CUDA_VISIBLE_DEVICES=1 shows 1"):
        visible_gpus(2, "1")
    with pytest.raises(SubmissionError, match=r"GPU-12ab: cluster=local needs the GPUs' numbers"):
        visible_gpus(1, "GPU-12ab")


@pytest.mark.parametrize(("visible", "expected"), [(None, "0,1"), ("3,1", "3,1")])
def test_what_submitit_makes_of_the_visible_gpus(
    visible: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its controller, which the agent inherits from, must see these GPUs and no others."""
    seen: dict[str, str] = {}
    monkeypatch.setattr("submitit.local.local.start_controller", lambda folder, command, **kwargs: seen.update(kwargs))
    monkeypatch.setattr("submitit.local.local.LocalJob", lambda **kwargs: None)
    executor = LocalExecutor(folder=tmp_path)
    executor.update_parameters(gpus_per_node=2, visible_gpus=visible_gpus(2, visible))
    with contextlib.suppress(AttributeError):  # there is no controller, and so no number of its process
        executor._submit_command("true")
    assert seen["cuda_devices"] == expected
