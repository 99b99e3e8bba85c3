from harness.observe.run_info import RESTART_REASONS, RunInfo, RunInfoCollector
from tests.observe.pages import page_of

INFO = RunInfo(run_id="smol-1", git_commit="abc", config_hash="def", world_size="16", gpu="NVIDIA H100 80GB HBM3")


def test_says_what_run_this_is() -> None:
    page = page_of(RunInfoCollector(INFO, 1_700_000_000.5, 8, None).collect())
    labels = {"run_id": "smol-1", "git_commit": "abc", "config_hash": "def", "world_size": "16"}
    assert page.get("harness_run_info", gpu="NVIDIA H100 80GB HBM3", **labels) == 1
    assert page.get("harness_attempt_start_timestamp_seconds") == 1_700_000_000.5
    assert page.get("harness_gpu_expected") == 8
    assert not page.series("harness_restarts_total")  # counted on the head node alone


def test_every_reason_has_a_series_from_the_start() -> None:
    restarts: dict[str, int] = {}
    collector = RunInfoCollector(INFO, 0.0, 0, restarts)
    page = page_of(collector.collect())
    assert {reason: page.get("harness_restarts_total", reason=reason) for reason in RESTART_REASONS} == dict.fromkeys(
        RESTART_REASONS, 0
    )
    restarts["node_fail"] = 2
    restarts["rank_crash"] = 1
    page = page_of(collector.collect())
    assert page.get("harness_restarts_total", reason="node_fail") == 2
    assert page.get("harness_restarts_total", reason="rank_crash") == 1


def test_a_reason_outside_the_contract_counts_as_unknown() -> None:
    page = page_of(RunInfoCollector(INFO, 0.0, 0, {"gremlins": 3, "unknown": 1}).collect())
    assert page.get("harness_restarts_total", reason="unknown") == 4
    assert len(page.series("harness_restarts_total")) == len(RESTART_REASONS)
