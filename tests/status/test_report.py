"""One screen about a run, from its folder alone."""

import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from harness.cluster import submit
from harness.config.compose import compose
from harness.monitor.endpoints import write_endpoints
from harness.run.attempt import Outcome, claim, write_outcome
from harness.run.files import append_json_line, write_json
from harness.run.folder import RunFolder
from harness.status.report import gather, render, sparkline


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    run = RunFolder(tmp_path / "tiny")
    run.create()
    run.save_config(compose(["+exp=tiny", f"runs_dir={tmp_path}"]))
    run.update_record(job_id="77")
    monkeypatch.setattr(submit, "is_active", lambda run, kind, job_id: "RUNNING")
    return run


def log_steps(run: RunFolder, steps: int, last: float) -> None:
    for step in range(1, steps + 1):
        record = {
            "step": step,
            "tokens": step * 4096,
            "loss": 8.0 - step / 10,
            "tokens_per_second": 4096.0,
            "time": last - steps + step,
        }
        append_json_line(run.metrics_path, record)


def test_before_the_first_step(run: RunFolder) -> None:
    text = render(gather(run))
    assert "running (job 77)" in text and "0 of 120" in text and "none yet; one every 20 steps" in text


def test_a_running_run(run: RunFolder) -> None:
    now = time.time()
    log_steps(run, 30, now)
    claim(run, "77.0", "77", ["n1", "n3"], "h", 1)
    run.exclude_node("n2", "down*")
    run.ledger(0).write("restart", step=25, reason="node_fail")
    write_json(run.calibration_path, {"tokens_per_second": 8192.0})
    text = render(gather(run), now + 3)
    assert "30 of 120 (25.0%)" in text and "3 s ago" in text and "1 min 30 s left" in text
    assert "4,096 tokens/s" in text and "50% of the expected 8,192" in text
    assert "1 x node_fail" in text and "n1, n3; excluded: n2 (down*)" in text
    assert "7.9000 █" in text


def test_a_run_that_stands_still_says_so(run: RunFolder) -> None:
    now = time.time()
    log_steps(run, 30, now)
    assert "STALLED: no step for 5 min" in render(gather(run), now + 300)
    assert "STALLED" not in render(gather(run), now + 60)


def test_the_last_word_of_a_run_that_ended(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "is_active", lambda run, kind, job_id: None)
    claim(run, "77.0", "77", ["n1"], "h", 1)
    assert "no agent recorded an outcome" in render(gather(run))
    write_outcome(run, 0, Outcome("failed", "nonfinite", "loss stayed NaN", final=True))
    assert "failed: loss stayed NaN" in render(gather(run))
    write_outcome(run, 0, Outcome("finished", "", "stopped early after step 40 of 120", final=True))
    status = gather(run)
    assert status.finished and "state      finished: stopped early after step 40 of 120 (job 77)" in render(status)


def test_validations_and_what_they_led_to(run: RunFolder) -> None:
    for step, loss in ((10, 3.0), (20, 2.5), (30, None), (40, 2.75)):
        append_json_line(run.validation_path, {"step": step, "tokens": 0, "loss": loss, "seconds": 1.0, "time": step})
    run.ledger(0).write("early_stop", step=40, why="the validation loss has had no new low in 2 validations")
    text = render(gather(run))
    assert "validation 2.7500 at step 40; the lowest was 2.5000 at step 20" in text
    assert "early stop at step 40 - the validation loss has had no new low" in text


def test_without_prometheus_it_says_how_to_get_one(run: RunFolder) -> None:
    text = render(gather(run))
    assert "alerts     not known" in text and "python -m harness.monitor up" in text


def test_alerts_of_this_run_and_the_cause_that_they_name(run: RunFolder) -> None:
    """Prometheus is a process boundary: its API's answers, served by a server of ours."""
    labels = {"alertname": "HarnessReadStuck", "run": "tiny", "node": "n3", "mount": "/data", "cause": "storage_hang"}
    alert = {
        "labels": labels,
        "annotations": {"summary": "a read hangs"},
        "state": "firing",
        "activeAt": "2026-01-02T03:04:05Z",
    }
    target = {
        "labels": {"run": "tiny", "node": "n2", "job": "harness"},
        "scrapeUrl": "http://n2",
        "health": "down",
        "lastError": "x",
    }
    answers = {"alerts": {"alerts": [alert]}, "targets": {"activeTargets": [target], "droppedTargets": []}}

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = answers[self.path.partition("?")[0].rpartition("/")[2]]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"status": "success", "data": data}).encode())

        def log_message(self, *arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        write_endpoints(run.path.parent, {"prometheus": f"http://127.0.0.1:{server.server_address[1]}"})
        text = render(gather(run))
        server.shutdown()
    assert "alerts     HarnessReadStuck (n3, /data): a read hangs (since 03:04:05 UTC)" in text
    assert "verdict    storage_hang (n3, /data)" in text
    assert "not answering: n2" in text


def test_sparkline_falls_with_the_loss() -> None:
    assert sparkline([8.0, 6.0, 4.0]) == "8.0000 █▅▁ 4.0000"


def test_a_long_run_has_a_short_curve(run: RunFolder) -> None:
    with open(run.metrics_path, "w") as f:
        for step in range(1, 5001):
            f.write(
                f'{{"step": {step}, "tokens": {step}, "loss": {9 - step / 1000}, "tokens_per_second": 1.0, "time": {step}}}\n'
            )
    losses = gather(run).losses
    assert 50 < len(losses) <= 61 and losses == sorted(losses, reverse=True)
    assert (losses[0], losses[-1]) == (8.999, 4.0)


def test_no_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness.status", "--runs-dir", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and "no run in" in result.stderr
    result = subprocess.run([*command, "absent"], capture_output=True, text=True)
    assert result.returncode == 2 and "not a run folder" in result.stderr


def test_a_reader_that_has_seen_enough_is_no_error(run: RunFolder) -> None:
    """`status | head -1`."""
    command = [sys.executable, "-m", "harness.status", "tiny", "--runs-dir", str(run.path.parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(60) == 0
