"""The whole page of a node, held against the metrics contract that dashboards, rules and users' queries rely on."""

import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from harness.data.stage_status import StageStatus, write_status
from harness.observe import exporter as exporter_module
from harness.observe import xid as xid_module
from harness.observe.board import Board, RankState
from harness.observe.boards import BoardsCollector
from harness.observe.canary import CanaryCollector, CanaryMount
from harness.observe.collector import Background
from harness.observe.exporter import Exporter
from harness.observe.node import AgentCostCollector, FilesystemCollector, PressureCollector
from harness.observe.nvml import GpuCollector
from harness.observe.reads import BoardReads
from harness.observe.residency import ResidencyCollector
from harness.observe.run_info import RunInfo, RunInfoCollector
from harness.observe.staging import SpareCollector, StagingCollector
from harness.observe.xid import XidCollector
from harness.run.folder import Ledger
from tests.conftest import require
from tests.observe.conftest import NvmlState
from tests.observe.pages import Page
from tests.waiting import wait_for

CONTRACT = """
harness_train_tokens_total                       counter
harness_train_expected_tokens_per_second         gauge
harness_train_steps_total                        counter
harness_train_step                               gauge
harness_train_step_seconds                       histogram
harness_train_expected_step_seconds              gauge
harness_train_last_step_timestamp_seconds        gauge
harness_train_phase_seconds_total                counter    phase
harness_train_planned_pause                      gauge
harness_train_rank_compute_seconds_total         counter    rank
harness_train_rank_comm_wait_seconds_total       counter    rank
harness_train_loss                               gauge
harness_train_grad_norm                          gauge
harness_train_learning_rate                      gauge
harness_train_nonfinite_total                    counter
harness_train_skipped_steps_total                counter
harness_train_model_flops_utilization_ratio      gauge
harness_data_read_seconds                        histogram  mount source
harness_data_read_bytes_total                    counter    mount source
harness_data_slow_reads_total                    counter    mount source
harness_data_read_oldest_inflight_seconds        gauge      mount
harness_data_read_errors_total                   counter    mount errno
harness_data_queue_batches                       gauge
harness_data_worker_cpu_seconds_total            counter
harness_data_resident_ratio                      gauge      mount source
harness_stage_ready                              gauge
harness_stage_ready_ratio                        gauge
harness_stage_bytes_total                        counter
harness_stage_files                              gauge      state
harness_stage_spare_ready                        gauge      spare
harness_canary_read_seconds                      gauge      mount kind
harness_canary_timeouts_total                    counter    mount kind
harness_canary_last_run_timestamp_seconds        gauge      mount kind
harness_canary_errors_total                      counter    mount kind
harness_ckpt_save_seconds                        histogram  stage
harness_ckpt_restore_seconds                     histogram  stage
harness_ckpt_bytes_total                         counter
harness_ckpt_failures_total                      counter
harness_run_lines_waiting                        gauge
harness_run_lines_lost_total                     counter
harness_ckpt_last_success_timestamp_seconds      gauge
harness_ckpt_last_success_step                   gauge
harness_gc_pause_seconds                         histogram  generation
harness_run_info                                 gauge      run_id git_commit config_hash world_size gpu
harness_attempt_start_timestamp_seconds          gauge
harness_restarts_total                           counter    reason
harness_gpu_info                                 gauge      gpu name uuid
harness_gpu_utilization_ratio                    gauge      gpu
harness_gpu_memory_used_bytes                    gauge      gpu
harness_gpu_temperature_celsius                  gauge      gpu
harness_gpu_power_watts                          gauge      gpu
harness_gpu_sm_clock_hertz                       gauge      gpu
harness_gpu_sm_clock_max_hertz                   gauge      gpu
harness_gpu_energy_joules_total                  counter    gpu
harness_gpu_throttle_seconds_total               counter    gpu reason
harness_gpu_xid_errors_total                     counter    gpu xid
harness_gpu_xid_last_timestamp_seconds           gauge      gpu xid
harness_gpu_ecc_errors_total                     counter    gpu kind
harness_gpu_remapped_rows                        gauge      gpu kind
harness_gpu_expected                             gauge
harness_gpu_visible                              gauge
harness_node_pressure_seconds_total              counter    resource kind scope
harness_node_filesystem_avail_bytes              gauge      mount
harness_node_filesystem_inodes_free              gauge      mount
harness_agent_cpu_seconds_total                  counter
harness_agent_resident_bytes                     gauge
harness_exporter_collect_seconds                 gauge      collector
harness_exporter_errors_total                    counter    collector
harness_exporter_last_success_timestamp_seconds  gauge      collector
harness_exporter_collector_enabled               gauge      collector
"""
TABLE = {name: (kind, set(labels)) for name, kind, *labels in map(str.split, CONTRACT.strip().splitlines())}


def train_a_little(board: Board) -> None:
    """One of everything that a trainer writes."""
    reads = BoardReads(board, Ledger(board.path.with_name("events.jsonl"), 0))
    reads.register([("/fsx", "web"), ("/fsx", 'odd "source"\n\\')])
    reads.finished(0, 0, 0.004, 4096, slow=False)
    board.set("state", RankState.training)
    for cell in ("step", "last_step_time", "expected_tokens_per_second", "expected_step_seconds", "mfu"):
        board.set(cell, 0.5)
    board.set("ckpt_last_success_time", time.time())


@pytest.fixture
def exporter(
    tmp_path: Path, boards: Callable[[int], Board], nvml: NvmlState, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Exporter]:
    """All collectors of a head node with two ranks and two GPUs, one of which has reported an XID."""
    monkeypatch.setattr(exporter_module, "HTTP_POLL_SECONDS", 0.01)
    monkeypatch.setattr(xid_module, "WAIT_MILLISECONDS", 50)
    shard = tmp_path / "shard.ds"
    shard.write_bytes(bytes(100_000))
    for rank in (0, 1):
        train_a_little(boards(rank))
    nvml("gpu 0 util=50", "gpu 1 util=50", nvml.event(1, 79))
    write_status(tmp_path / "status.json", StageStatus())
    (tmp_path / "staging").mkdir()
    write_status(tmp_path / "staging" / "n9.json", StageStatus(updated=time.time()))
    (tmp_path / "proc/pressure").mkdir(parents=True)
    (tmp_path / "proc/pressure/io").write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n")
    made = Exporter(
        [
            BoardsCollector(tmp_path / "boards"),
            RunInfoCollector(RunInfo("smol", "abc", "def", "2", "Stub"), time.time(), 2, {}),
            Background(GpuCollector(), 5),
            XidCollector(),
            Background(CanaryCollector([CanaryMount("/fsx", tmp_path, [shard])], "n1"), 10),
            Background(FilesystemCollector(str(tmp_path)), 30),
            Background(FilesystemCollector("/"), 30),
            Background(ResidencyCollector({"web": str(tmp_path)}), 300),
            Background(StagingCollector(tmp_path / "status.json"), 10),
            Background(SpareCollector(tmp_path / "staging", ["n1"]), 10),
            Background(PressureCollector(tmp_path / "proc", []), 5),
            AgentCostCollector(),
        ],
        "127.0.0.1",
        0,
    )
    yield made
    made.close()


def fetch(exporter: Exporter, accept: str = "text/plain") -> str:
    host, port = exporter.address
    request = urllib.request.Request(f"http://{host}:{port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request) as answer:
        return answer.read().decode()


def complete_page(exporter: Exporter) -> str:
    """The page once every background collector has come round."""

    def everything_is_there() -> bool:
        text = fetch(exporter)
        return all(f"# TYPE {name} " in text for name in TABLE) and 'xid="79"' in text

    wait_for(everything_is_there)
    return fetch(exporter)


def family_of(sample: str) -> str:
    for suffix in ("_bucket", "_count", "_sum"):
        base = sample.removesuffix(suffix)
        if base != sample and TABLE.get(base, ("", set()))[0] == "histogram":
            return base
    return sample


def test_every_series_is_in_the_contract_with_its_labels(exporter: Exporter) -> None:
    page = Page(complete_page(exporter))
    assert {family_of(name) for name in page.names()} == set(TABLE)
    for name, labels in page.samples:
        kind, expected = TABLE[family_of(name)]
        assert {key for key, _ in labels} - {"le"} == expected, name
        assert page.types.get(family_of(name), page.types.get(name.removesuffix("_total"))) == kind, name


def test_target_labels_are_left_to_discovery(exporter: Exporter) -> None:
    page = Page(complete_page(exporter))
    for _, labels in page.samples:
        assert not {"run", "attempt", "slurm_job_id", "node", "instance", "job"} & {key for key, _ in labels}


def test_histograms_are_whole(exporter: Exporter) -> None:
    page = Page(complete_page(exporter))
    for name, (kind, _) in TABLE.items():
        for labels in page.series(f"{name}_count") if kind == "histogram" else ():
            buckets = sorted(
                (float(dict(key)["le"]), value)
                for (sample, key), value in page.samples.items()
                if sample == f"{name}_bucket" and labels.items() <= dict(key).items()
            )
            counts = [count for _, count in buckets]
            assert buckets[-1][0] == float("inf") and counts == sorted(counts)
            assert page.get(f"{name}_count", **labels) == counts[-1]
            assert page.get(f"{name}_sum", **labels) is not None


def test_openmetrics_says_the_same(exporter: Exporter) -> None:
    complete_page(exporter)
    text = fetch(exporter, "application/openmetrics-text; version=1.0.0")
    families = {family.name for family in parse_openmetrics(text)}
    assert families == {name.removesuffix("_total").removesuffix("_info") for name in TABLE}


@pytest.mark.prometheus
def test_promtool_finds_nothing_to_complain_of(exporter: Exporter) -> None:
    require("promtool")
    page = complete_page(exporter)
    check = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr
