"""The batch script, and what a job must not inherit."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from submitit import LocalExecutor

from harness import slurm
from harness.cluster.submit import SubmissionError, batch_script, is_active, visible_gpus
from harness.config.compose import compose
from harness.config.schema import ClusterKind
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


def test_only_variables_that_choose_the_cluster_reach_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"SLURM_CONF": "/etc/slurm.conf", "SLURM_CONF_SERVER": "c", "SLURM_CLUSTERS": "c2", "SLURM_JWT": "token"}
    dropped = ("SLURM_CPU_BIND", "SLURM_JOB_ID", "SBATCH_PARTITION", "SBATCH_NO_REQUEUE", "SRUN_CPUS_PER_TASK", "SALLOC_QOS",
               "_SLURM_SPANK_OPTION_x_y", "PMIX_RANK", "SUBMITIT_EXECUTOR", "SQUEUE_PARTITION", "SINFO_PARTITION")  # fmt: skip
    for key in [key for key in os.environ if key.startswith(slurm.DESCRIBES_JOB)]:
        monkeypatch.delenv(key)
    for key, value in {**kept, **dict.fromkeys(dropped, "x")}.items():
        monkeypatch.setenv(key, value)
    before = dict(os.environ)
    with slurm.clean_environment():
        assert dict(os.environ) == {key: value for key, value in before.items() if key not in dropped}
        shown = slurm.run("env")
    assert dict(os.environ) == before
    assert slurm.overruling() == ["SBATCH_NO_REQUEUE=x", "SBATCH_PARTITION=x"]
    assert slurm.run("env") == shown and "SLURM_JWT=token" in shown and "SINFO_PARTITION" not in shown


class TestIsActive:
    """A local run's job is its controller's process, told by the run's folder on its command line."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> RunFolder:
        run = RunFolder(tmp_path / "runs" / "a")
        run.create()
        return run

    def controller(self, folder: Path, *setup: str) -> "subprocess.Popen[bytes]":
        """A process with the command line of submitit's, which starts it through a shell after `cluster.setup`."""
        package = folder.parent.parent / "fake" / "submitit" / "local"
        package.mkdir(parents=True, exist_ok=True)
        for folder_of_code in (package, package.parent):
            (folder_of_code / "__init__.py").touch()
        (package / "_local.py").write_text("print(1, flush=True)\nimport time\ntime.sleep(60)\n")
        command: list[str] = [sys.executable, "-m", "submitit.local._local", str(folder)]
        environment = {**os.environ, "PYTHONPATH": str(package.parent.parent)}
        process = subprocess.Popen(
            " && ".join([*setup, shlex.join(command)]) if setup else command,
            shell=bool(setup), env=environment, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == b"1\n"
        return process

    @pytest.mark.parametrize("setup", [(), ("true", "echo 'a  b' > /dev/null")])
    def test_only_the_controller_of_this_run(self, run: RunFolder, tmp_path: Path, setup: tuple[str, ...]) -> None:
        other = RunFolder(tmp_path / "runs" / "b")
        other.create()
        process = self.controller(run.submit_dir, *setup)
        try:
            pid = str(process.pid)
            assert is_active(run, ClusterKind.local, pid) == "RUNNING"
            assert is_active(other, ClusterKind.local, pid) is None, "a number that has come round again"
            (tmp_path / "link").symlink_to(run.path)
            assert is_active(RunFolder(tmp_path / "link"), ClusterKind.local, pid) == "RUNNING"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert is_active(run, ClusterKind.local, pid) is None

    @pytest.mark.parametrize("job_id", ["self", "999999999", "", "x", "1"])
    def test_other_processes(self, run: RunFolder, job_id: str) -> None:
        assert is_active(run, ClusterKind.local, str(os.getpid()) if job_id == "self" else job_id) is None


def test_no_flag_is_added_that_was_switched_off(tmp_path: Path) -> None:
    lines = script(
        tmp_path,
        "cluster.sbatch.exclusive=False",
        "cluster.sbatch.kill-on-invalid-dep=no",
        "cluster.sbatch.comment=1.10",
    )
    assert "--exclusive" not in lines and "#SBATCH --kill-on-invalid-dep=no\n" in lines and "--comment=1.10\n" in lines


def test_without_slurm_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(slurm.NoClient, match=r"^sbatch is not on PATH: this machine has no Slurm client$"):
        slurm.run("sbatch", "--version")
    with pytest.raises(slurm.NoClient, match=r"sbatch is not on PATH.*cluster=local"):
        slurm.check_controller()


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
