"""`python -m harness.verify` must pass on what is equal, and name what is not."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.config.compose import compose
from harness.config.schema import Precision
from harness.run.files import read_json, write_json
from harness.verify import processes, rank
from harness.verify import verify as verify_module
from harness.verify.__main__ import main
from harness.verify.command import _side_by_side, _verdict
from harness.verify.compare import CHECKS, EVIDENCE, TOLERANCES, Check, compare
from harness.verify.errors import VerifyError
from harness.verify.layouts import STANDARD, Case
from harness.verify.processes import OnThisMachine
from harness.verify.table import as_json, checks_table, layout_row
from harness.verify.verify import Outcome, measure, train_alone, verify
from tests.verify import planted

LAYOUTS = {case.name: case for case in STANDARD}
HEADER = "check              largest relative difference"


def outcome_of(work: Path, case: Case, target: Any = measure, *overrides: str) -> Outcome:
    config = compose(["+exp=tiny", *overrides])
    starter = OnThisMachine(config.model.model_type, on_gpu=False)
    with ThreadPoolExecutor(1) as executor:
        reference = train_alone(config, [case], Precision.fp32, starter, executor, work, on_gpu=False)
        (found,) = verify(config, [case], reference, starter, executor, target)
    return found.result()


def failed(checks: list[Check]) -> dict[str, str | None]:
    return {check.name: check.where for check in checks if not check.passed}


def test_the_command_says_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["parallel.pp=2", "optim.ema_decay=0.9", "train.z_loss=1e-4", "optim=muon"]
    assert main(["+exp=tiny", *changes, "--cpu", "--json", str(tmp_path / "found.json")]) == 0
    said = capsys.readouterr().out
    assert "pp 2, verified as pp 2 on 2 ranks" in said and HEADER in said and said.endswith("\nequal\n")
    assert said.count("  ok") == len(CHECKS)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["passed"] and found["run"] == "tiny"
    (layout,) = found["layouts"]
    assert (layout["ranks"], layout["parallel"]["pp"], layout["precision"]) == (2, 2, "fp32")
    assert [check["name"] for check in layout["checks"]] == list(CHECKS)
    rounding = {check["name"]: check["difference"] for check in layout["checks"]}
    assert rounding["initial weights"] == 0 and 0 < rounding["updated weights"] < 1e-4


def test_shards_from_one_seed_are_caught(tmp_path: Path) -> None:
    found = outcome_of(tmp_path, LAYOUTS["tp 2"], planted.shards_from_one_seed)
    assert not found.passed
    wrong = failed(found.checks)
    assert (
        wrong["shards differ"] == "model.embed_tokens.weight: [(0, 128), (0, 64)] and [(128, 256), (0, 64)] are alike"
    )
    assert str(wrong["initial weights"]).startswith("model.embed_tokens.weight (")
    assert {"loss", "gradients"} <= wrong.keys()
    assert "FAILED  model.embed_tokens.weight: [(0, 128)" in checks_table(found)
    assert "shards differ: model.embed_tokens.weight" in layout_row(found, 10)


def test_gradients_that_are_not_summed_are_caught(tmp_path: Path) -> None:
    found = outcome_of(tmp_path, LAYOUTS["cp 2"], planted.gradients_averaged_over_cp)
    wrong = failed(found.checks)
    assert set(wrong) == {"loss", "gradient norm", "gradients", "updated weights"}
    assert str(wrong["loss"]).startswith("step 2 on rank 0: ")  # the first forward pass is right
    assert "most model.layers." in str(wrong["gradients"])
    (gradients,) = (check for check in found.checks if check.name == "gradients")
    assert gradients.difference is not None and gradients.difference > 0.1


def test_the_rank_that_failed_first_is_named(tmp_path: Path) -> None:
    found = outcome_of(tmp_path, LAYOUTS["dp_shard 2"], planted.crash)
    assert not found.passed and found.error is not None
    assert found.error.startswith("rank 1 (and 1 other rank): exit code 1\n")
    assert found.error.endswith("ValueError: planted")
    assert "FAILED: rank 1" in layout_row(found, 10)


def test_a_checkpoint_that_can_not_be_saved_is_told_as_that(tmp_path: Path) -> None:
    found = outcome_of(tmp_path, LAYOUTS["dp_shard 2"], planted.full_disk)
    assert not found.passed and not found.checks
    assert "the checkpoint of step 4 could not be saved: rank 0: OSError: [Errno 28] No space left" in str(found.error)
    assert _verdict([found]).startswith("FAILED: dp_shard 2 did not get through, so nothing was compared")
    wrong = Check("loss", 1.0, 0.1, False, "step 1")
    assert _verdict([found, Outcome(found.case, Precision.fp32, [wrong])]).startswith("DIFFERENT")


def test_layouts_do_not_wait_for_a_single_process_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "measure", planted.crash)  # not what the layouts do
    with pytest.raises(VerifyError, match="the run in one process failed: rank 0: exit code 1"):
        outcome_of(tmp_path, LAYOUTS["dp_shard 2"], rank.measure)
    assert "the run in one process failed" in (tmp_path / "layout-00" / "logs" / "rank-0.log").read_text()


def test_layouts_that_have_not_begun_are_left_when_it_is_stopped() -> None:
    cancelled = threading.Event()
    with pytest.raises(KeyboardInterrupt), _side_by_side(1) as executor:
        executor.submit(cancelled.wait)
        later = executor.submit(print, "never")
        later.add_done_callback(lambda future: cancelled.set())
        raise KeyboardInterrupt
    assert later.cancelled()


def test_ranks_on_the_cpu_see_no_gpu(tmp_path: Path) -> None:
    """The checkpoint's writer uses one where there is one, and CUDA does not live through a fork. In a process of its own: ours may
    have a server already, which other tests have started with other imports."""
    code = (
        "import pathlib, sys; from harness.verify.processes import OnThisMachine; from tests.verify import planted; "
        f"sys.exit(OnThisMachine('smollm3', on_gpu=False).run(planted.sees_no_gpu, 1, pathlib.Path({str(tmp_path)!r})) != [])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_compares_leaves_the_models_to_the_ranks() -> None:
    """So that torch alone is imported beside the ranks' server, which imports the rest meanwhile."""
    code = "import sys, harness.verify.command as c; assert 'torch' not in sys.modules; import harness.verify.verify, harness.verify.table; assert 'transformers' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_rank_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one may take as long as it needs: the time is over as soon as that has ended."""
    starter = OnThisMachine("smollm3", on_gpu=False)
    passed = 0.0

    def until_one_ends(sentinels: list[int], left: float) -> None:
        nonlocal passed
        wait(sentinels)
        passed += left

    monkeypatch.setattr(processes, "TIMEOUT", 2.0)
    monkeypatch.setattr(processes, "wait", until_one_ends)
    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=lambda: passed, time=time.time))
    (failure,) = starter.run(planted.hang, 2, tmp_path, tmp_path, None)
    assert (failure.rank, failure.text) == (1, "did not finish within 2 s")
    assert not multiprocessing.active_children()


def test_ranks_on_gpus_start_anew_if_their_server_can_not_use_them(tmp_path: Path) -> None:
    """What it imports may have started CUDA, which can't be used in a process that is forked after that."""
    starter = OnThisMachine("smollm3", on_gpu=True)
    assert starter.run(planted.no_server, 1, tmp_path) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_command_says_equal_on_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["+exp=tiny", "cluster.ranks_per_node=1"]) == 0
    said = capsys.readouterr().out
    assert "in small against one process, fp32 (GPU, nccl)" in said and said.endswith("\nequal\n")


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the runs `alone` and `layout-00` (dp_shard 2), which are equal. Tests must copy it."""
    work = tmp_path_factory.mktemp("evidence")
    assert outcome_of(work, LAYOUTS["dp_shard 2"]).passed
    return work


NAME = "model.layers.2.mlp.up_proj.weight"


def change_tensor(work: Path, kind: str, name: str, change: Any) -> None:
    path = work / "layout-00" / EVIDENCE / f"{kind}-0.safetensors"
    tensors = load_file(path)
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, path)


def change_record(work: Path, rank: int, change: Any) -> None:
    path = work / "layout-00" / EVIDENCE / f"rank-{rank:05d}.json"
    record = read_json(path)
    change(record)
    write_json(path, record)


def one_element(tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone()
    changed.view(-1)[7] *= 1 + 1e-6
    return changed


DAMAGES: dict[str, tuple[Any, dict[str, str]]] = {
    "one bit of the initial weights": (
        lambda work: change_tensor(work, "initial", NAME, one_element),
        {"initial weights": NAME},
    ),
    "a gradient": (lambda work: change_tensor(work, "gradients", NAME, lambda t: t * 1.001), {"gradients": NAME}),
    "a gradient is lost": (
        lambda work: change_tensor(work, "gradients", NAME, lambda t: t[:-1]),
        {"gradients": f"{NAME} is not there, or has another shape"},
    ),
    "a gradient is not a number": (
        lambda work: change_tensor(work, "gradients", NAME, lambda t: t * torch.nan),
        {"gradients": f"{NAME} (nan)"},
    ),
    "a restored moment": (
        lambda work: change_tensor(work, "restored", f"optim.{NAME}.exp_avg", one_element),
        {"saved alone, read": f"optim.{NAME}.exp_avg"},
    ),
    "a saved moment": (
        lambda work: change_tensor(work, "state", f"optim.{NAME}.exp_avg", one_element),
        {"saved, read alone": f"optim.{NAME}.exp_avg"},
    ),
    "the loss on one rank": (
        lambda work: change_record(work, 1, lambda record: record["losses"].__setitem__(2, float("nan"))),
        {"loss": "step 3 on rank 1: nan instead of"},
    ),
    "copies": (
        lambda work: [
            change_record(work, rank, lambda record, rank=rank: record["parts_after"].update({NAME: ["[(0, 4)]", rank]}))
            for rank in range(2)
        ],
        {"copies agree": f"{NAME}: [(0, 4)] differs between ranks"},
    ),
    "no checkpoint": (
        lambda work: shutil.rmtree(work / "layout-00" / "checkpoints"),
        {"saved, read alone": "is not there"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_check_can_fail(damage: str, evidence: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(evidence, work)
    change, expected = DAMAGES[damage]
    change(work)
    checks = compare(work / "layout-00", work / "alone", TOLERANCES[Precision.fp32])
    wrong = failed(checks)
    assert wrong.keys() == expected.keys()
    for name, where in expected.items():
        assert where in str(wrong[name])
    found = as_json([Outcome(LAYOUTS["dp_shard 2"], Precision.fp32, checks)])
    assert not found["passed"] and json.loads(json.dumps(found, allow_nan=False)) == found


def test_beside_torchrun(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "harness.verify",
    ]
    arguments = ["+exp=tiny", f"runs_dir={tmp_path}", "--cpu", "--full-layout"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "verified as dp_shard 2 on 2 ranks" in done.stdout and done.stdout.count(HEADER) == 1
    assert list(tmp_path.iterdir()) == [], "what it wrote is gone"


def problem(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


def test_what_can_not_be_verified(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "parallel.tp=3: must divide" in problem(capsys, "+exp=tiny", "parallel.tp=3", "cluster.ranks_per_node=3")
    assert "no such key" in problem(capsys, "+exp=tiny", "parallel.tpp=3")
    assert "needs 384 ranks, too many for this machine" in problem(capsys, "+exp=smol3b", "--full-layout")
    assert "no such folder" in problem(capsys, "+exp=tiny", "--json", "/nowhere/found.json")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert "dp_replicate 192 x tp 2 needs 384 ranks, and 6 were started" in problem(
        capsys, "+exp=smol3b", "--full-layout"
    )
    assert "run it without torchrun" in problem(capsys, "+exp=smol3b", "--all")


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from harness.verify.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    done = subprocess.run([sys.executable, "-c", f"{code}assert 'torch' not in sys.modules"], check=False)
    assert done.returncode == 0
