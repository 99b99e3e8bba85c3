"""`python -m harness.launch` as it is typed: plans, scripts, refusals. Nothing is submitted here."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.checkpoint.manifest import Manifest
from harness.cluster import submit
from harness.config.compose import compose
from harness.data.packing import cut
from harness.data.token_files import open_source
from harness.launch import __main__ as command_line
from harness.launch import launch as launch_module
from harness.launch.launch import make_paths_absolute, run_folder
from harness.optim.schedule import Curve
from harness.train.log import write_validation
from tests.conftest import require
from tests.tiny import write_tokens


def launch(*arguments: str, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "harness.launch", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **(env or {})})


def test_help_needs_nothing_heavy() -> None:
    """--help must answer at once: neither torch nor Hydra is imported on the way."""
    code = "import sys; sys.argv=['x','--help']\ntry:\n  from harness.launch.__main__ import main; main()\nexcept SystemExit: pass\nprint(sorted({'torch','hydra','omegaconf','submitit','transformers'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "experiments: ablation_1b, long_context_32k, smol3b, smol3b_1node, tiny" in result.stdout


def test_overrides_may_stand_on_both_sides_of_an_option(tmp_path: Path) -> None:
    result = launch("+exp=smol3b", "--config-dir", str(tmp_path), "dry_run=true", f"runs_dir={tmp_path}", "optim.lr=x")
    assert "optim.lr" in result.stdout + result.stderr and "unrecognized arguments" not in result.stderr


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
    assert "Plan of run tiny,lr=1e-4" in result.stdout and "Plan of run tiny,lr=2e-4" in result.stdout
    assert result.stdout.splitlines()[-3:] == [
        "run           result",
        "tiny,lr=1e-4  dry run",
        "tiny,lr=2e-4  dry run",
    ]


def test_one_bad_run_of_a_sweep_stops_all_before_anything_is_submitted(tmp_path: Path) -> None:
    result = launch("-m", "+exp=tiny", "train.global_batch_size=16,17", f"runs_dir={tmp_path}/runs")
    assert result.returncode == 2
    assert "tiny,global_batch_size=17: train.global_batch_size=17" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_paths_mean_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose(["+exp=tiny", "data.tokenizer=tok", "+data.validation.held.path=held_out"])
    make_paths_absolute(config)
    data = config.data
    paths = (config.runs_dir, config.monitor.targets_dir, data.sources["demo"].path, data.tokenizer)
    assert paths == tuple(str(tmp_path / name) for name in ("runs", "runs/.targets", "corpus/tokens", "tok"))
    assert data.validation["held"].path == str(tmp_path / "held_out")


def test_a_plan_warns_of_layout_and_mixture_alike(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens")
    model = ["model.model_type=olmo2", "model.no_rope_layer_interval=0", "cluster.ranks_per_node=2", "parallel.tp=2"]
    mixture = [f"data.sources.demo.path={tokens}", "data.stages=[{name: all, weights: {demo: 2.0}}]"]
    result = launch("+exp=tiny", "dry_run=true", f"runs_dir={tmp_path}", *model, *mixture)
    assert result.returncode == 0, result.stderr
    layout, weights, repeats = (line for line in result.stdout.splitlines() if line.startswith("  warning"))
    assert "parallel.tp=2: olmo2 has no tensor-parallel plan" in layout and "weights sum to 2" in weights
    assert "data.sources.demo is read through 36.2 times: beyond about 4 a repeat teaches much less" in repeats


def test_a_plan_tells_what_packing_wastes_once_it_is_known(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens")
    asked = ["+exp=tiny", f"runs_dir={tmp_path}", f"data.sources.demo.path={tokens}", "data.eos_token_id=0"]
    packed = [*asked, "data.packing=best_fit", "train.steps=3", "schedule.warmup_steps=0", "schedule.decay_steps=0"]
    chunks, first = (launch(*overrides, "dry_run=true").stdout for overrides in (asked, packed))
    assert re.search(r"wasted +demo \d\.\d\d% is left over", chunks)
    assert "not packed for data.seq_len=256 yet; launching the run does it, and repeats are known then" in first
    assert not list(tokens.glob("best_fit-*")), "a dry run leaves nothing behind"
    real = launch(*packed, "follow=true")
    assert real.returncode == 0, real.stdout + real.stderr
    assert "packing demo" in real.stderr and len(list(tokens.glob("best_fit-256-*"))) == 1
    for printed in (real.stdout, launch(*packed, "run.name=again", "dry_run=true").stdout):
        assert re.search(r"wasted +demo \d\.\d\d% is padding", printed)


@pytest.mark.parametrize(("packing", "cluster"), [("chunk", "local"), ("best_fit", "local"), ("chunk", "slurm")])
def test_a_source_in_an_object_store_needs_no_copy_to_be_launched(tmp_path: Path, packing: str, cluster: str) -> None:
    """Where it was never staged, as on a login node, the plan is the one of the same files in a folder."""
    tokens, no_slurm = write_tokens(tmp_path / "tokens"), {"PATH": "/usr/bin-without-slurm"}
    asked = ["+exp=tiny", f"cluster={cluster}", "cluster.gpus_per_node=0", f"runs_dir={tmp_path}", "data.eos_token_id=0", f"data.packing={packing}",
             "dry_run=true"]  # fmt: skip
    if packing == "best_fit":  # packed beside the tokens, as it was when they were put into the store
        data = compose([*asked, f"data.sources.demo.path={tokens}"]).data
        cut(open_source("demo", tokens), data)
    folder = launch(*asked, f"data.sources.demo.path={tokens}", env=no_slurm)
    stored = launch(
        *asked, f"data.sources.demo.path=file://{tokens}", f"data.stage_to={tmp_path}/scratch", env=no_slurm
    )
    assert (folder.returncode, stored.returncode) == (0, 0), stored.stderr
    assert re.search(r"data +demo [\d.]+x read through", stored.stdout)
    assert stored.stdout == folder.stdout
    assert not list(tmp_path.glob("scratch/*"))


def test_what_is_wrong_in_an_object_store_is_told_by_its_url(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens")
    os.truncate(tokens / "000.ds", 1001)
    url = f"file://{tokens}"
    for path, says in (
        (url, f"data.sources.demo.path={url}: 000.ds has 1001 bytes"),
        (f"file://{tmp_path}/none", f"data.sources.demo.path=file://{tmp_path}/none cannot be read: "),
    ):
        result = launch("+exp=tiny", f"runs_dir={tmp_path}/runs", f"data.sources.demo.path={path}",
                        f"data.stage_to={tmp_path}/scratch", "data.eos_token_id=0")  # fmt: skip
        assert result.returncode != 0 and says in result.stderr, result.stderr
        assert "Traceback" not in result.stderr and f"{tmp_path}/scratch" not in result.stderr


def test_a_mixture_that_can_not_be_followed_is_named(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens")
    sources = [f"data.sources.demo.path={tokens}", f"+data.sources.more.path={tokens}", "data.eos_token_id=0"]
    stages = "data.stages=[{weights: {demo: 1.0, more: 1e-9}}]"
    result = launch("+exp=tiny", f"runs_dir={tmp_path}", *sources, stages)
    assert result.returncode == 2
    assert "data.stages[0] (stage).weights.more=1e-09: under a millionth of the samples; leave it out" in result.stderr


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
        monkeypatch.setattr(submit, "is_active", lambda run, kind, job_id: None)

    def checkpoint(self, step: int, **facts: Any) -> None:
        folder = self.run.checkpoints_dir / f"step-{step:08d}"
        folder.mkdir()
        Manifest(step, 0, 1, 0, **{"identity": {}, "files": (), "torch": "", "time": 0.0, **facts}).write(folder)

    def launch(self, capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, str]:
        code = command_line.main([*self.overrides, *overrides])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    def pretend(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """There are data, and a scheduler."""
        monkeypatch.setattr(launch_module, "check_sources", lambda data, vocabulary, held_out: [])
        monkeypatch.setattr(launch_module, "_order_problems", lambda config: [])
        monkeypatch.setattr(submit, "submit", lambda config, run: "78")

    def test_running_already(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(submit, "is_active", lambda run, kind, job_id: "RUNNING")
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
        assert "run.name=tiny has trained to step 20" in output
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

    def test_a_run_that_stopped_early_has_nothing_to_do_either(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.checkpoint(40)
        for step, loss in ((10, 3.0), (20, 2.0), (30, 2.5), (40, 2.25), (50, 1.0)):  # step 50 was never saved
            write_validation(self.run, step, tokens=0, loss=loss, seconds=1.0)
        asked = ["train.eval_every=10", "+data.validation.held.path=/nowhere"]
        code, output = self.launch(capsys, *asked, "train.early_stop_evals=2")
        assert code == 0 and "raise train.early_stop_evals" in output
        assert "has finished early, after step 40 of 120: the validation loss has had no new low" in output
        code, output = self.launch(capsys, *asked, "train.early_stop_evals=3")
        assert code == 2 and "data.validation.held.path=/nowhere" in output  # goes on, were it not for the data

    def decayed(self, *steps: int) -> None:
        curve = Curve.of(self.run.load_config())
        for step in steps:
            self.checkpoint(step, lr=curve.rate(step), lr_share=curve.share(step))

    def test_more_steps_after_the_decay_go_back_before_it(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.pretend(monkeypatch)
        self.decayed(80, 100, 120)
        code, output = self.launch(capsys, "train.steps=240")
        assert code == 0, output
        assert (
            "the run goes back from step 120 to step 80, its newest checkpoint from before the learning rate" in output
        )
        assert "set schedule.overrides=[{step: 121, lr: 0.003}]" in output
        assert "resumes    from the checkpoint of step 80" in output

    def test_more_steps_without_a_way_back_are_refused_or_meant(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.pretend(monkeypatch)
        self.decayed(120)
        code, output = self.launch(capsys, "train.steps=240")
        assert code == 2 and "would jump from 0% of its peak at step 120" in output
        assert self.run.load_config().train.steps == 120
        code, output = self.launch(capsys, "train.steps=240", "schedule.overrides=[{step: 121, lr: 0.001}]")
        assert code == 0, output
        (change, _) = self.run.events()
        assert change["why"] == "the learning rate's curve changes: 0 at step 120, 0.001 at step 121"
        assert change["why"] in output

    def test_another_order_of_samples_is_refused(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.pretend(monkeypatch)
        self.checkpoint(20, identity={"data.format": 1})
        code, output = self.launch(capsys)
        assert code == 2 and "can't be gone on from: its samples come in the order of format 1" in output

    def test_skipping_what_was_trained_on_goes_back_and_is_recorded(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.pretend(monkeypatch)
        for step in (20, 40, 120):
            self.checkpoint(step)
        code, output = self.launch(capsys, "train.skip=[[25,30]]")
        assert code == 0
        assert "train.skip=[[25,30]]: the run goes back from step 120 to step 20, its newest checkpoint" in output
        assert "resumes    from the checkpoint of step 20" in output
        change, submitted = self.run.events()
        assert (change["event"], change["changes"]["train.skip"]) == ("config_change", [[], [[25, 30]]])
        assert (submitted["event"], submitted["step"], submitted["job_id"]) == ("submitted", 20, "78")

    def test_skipping_without_a_way_back_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.checkpoint(40)
        code, output = self.launch(capsys, "train.skip=[[25,30]]")
        assert code == 2 and "a checkpoint of step 24 or before is needed" in output
        code, output = self.launch(capsys, "train.skip=[[25,30]]", "dry_run=true")
        assert code == 0 and "a checkpoint of step 24 or before is needed" in output
        assert self.run.load_config().train.skip == []

    def test_another_mixture_is_refused_and_how_to_change_it_is_said(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.checkpoint(20)
        mixture = ["+data.sources.more.path=/nowhere", "data.stages=[{name: all, weights: {demo: 0.75, more: 0.25}}]"]
        code, output = self.launch(capsys, *mixture)
        assert code == 2
        assert "data.stages[0].weights.more=0.25: the run was started with None" in output
        assert "leave data.stages as it was and say from which step on it differs" in output
        assert (
            "'data.change_at=[{step: 21, stages: [{until_step: null, weights: {demo: 0.75, more: 0.25}}]}]'" in output
        )

    def test_what_is_said_there_can_be_typed_and_is_recorded(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.pretend(monkeypatch)
        for step in (20, 40):
            self.checkpoint(step)
        typed = "data.change_at=[{step: 21, stages: [{until_step: null, weights: {demo: 0.75, more: 0.25}}]}]"
        code, output = self.launch(capsys, "+data.sources.more.path=/data/more", typed)
        assert code == 0, output
        assert "data.change_at (steps 21): the run goes back from step 40 to step 20" in output
        assert "changed    data.change_at[0].step: None -> 21" in output
        (change, _) = self.run.events()
        assert change["event"] == "config_change"
        assert change["changes"]["data.change_at[0].stages[0].weights.more"] == [None, 0.25]
        assert change["changes"]["data.sources.more.path"] == [None, "/data/more"]
