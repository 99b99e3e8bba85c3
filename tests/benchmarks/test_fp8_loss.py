"""FP8's loss beside bf16's: the table from what runs have logged, the curves, and which runs are made where."""

import argparse
import asyncio
import json
import sys
import types
from pathlib import Path

import pytest

from benchmarks import fp8_loss
from harness.config.compose import compose

STEPS = 250


def logged(output: Path, name: str, losses: list[float | None]) -> None:
    """A run's metrics, as if it had logged these losses."""
    (output / name).mkdir(parents=True)
    lines = [json.dumps({"step": step, "loss": loss}) for step, loss in enumerate(losses, 1)]
    (output / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def rows(table: str) -> dict[str, list[str]]:
    """Cells by the run's name, without the head."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {name: rest for name, *rest in cells}


def test_means_at_the_end_and_the_largest_difference_on_the_way(tmp_path: Path) -> None:
    logged(tmp_path, "bf16", [3.0] * STEPS)
    logged(tmp_path, "fp8-tensorwise", [3.0] * 50 + [3.5] * 50 + [3.0] * 100 + [3.1] * 50)
    found = rows(fp8_loss.compare(tmp_path, STEPS))
    assert list(found) == ["bf16", "fp8-tensorwise"], "runs that were not made have no row"
    assert found["bf16"] == ["250", "3.0000", "+0.0000", "0.0000"]
    assert found["fp8-tensorwise"] == ["250", "3.0500", "+0.0500", "0.2500"]


def test_a_run_that_was_cut_is_not_finished_and_compared_over_the_steps_that_it_has(tmp_path: Path) -> None:
    logged(tmp_path, "bf16", [3.0] * 150 + [1.0] * 100)
    logged(tmp_path, "fp8-tensorwise", [3.25] * 149)
    logged(tmp_path, "fp8-rowwise", [9.0] * 99)
    found = rows(fp8_loss.compare(tmp_path, STEPS))
    assert found["fp8-tensorwise"] == ["149 of 250", "not finished", "-", "0.2500"]
    assert found["fp8-rowwise"] == ["99 of 250", "not finished", "-", "-"]


def test_without_a_finished_bf16_run_there_is_no_difference(tmp_path: Path) -> None:
    logged(tmp_path, "bf16", [3.0] * 120)
    logged(tmp_path, "fp8-tensorwise", [3.0] * STEPS)
    found = rows(fp8_loss.compare(tmp_path, STEPS))
    assert found["bf16"][:3] == ["120 of 250", "not finished", "-"]
    assert found["fp8-tensorwise"] == ["250", "3.0000", "-", "0.0000"]


def test_a_loss_that_is_not_finite_is_seen(tmp_path: Path) -> None:
    logged(tmp_path, "bf16", [3.0] * STEPS)
    logged(tmp_path, "fp8-tensorwise", [3.0] * (STEPS - 1) + [None])
    assert rows(fp8_loss.compare(tmp_path, STEPS))["fp8-tensorwise"][1:3] == ["nan", "+nan"]


def test_the_curves_are_means_of_ten_steps_of_each_run_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, list[float]] = {}
    axes = types.SimpleNamespace(
        plot=lambda x, y, label, linewidth: drawn.update({label: y}), set=lambda **names: None, legend=lambda: None
    )
    figure = types.SimpleNamespace(savefig=lambda path, **options: Path(path).write_bytes(b"PNG"))
    pyplot = types.SimpleNamespace(subplots=lambda **options: (figure, axes), close=lambda figure: None)
    monkeypatch.setitem(
        sys.modules, "matplotlib", types.SimpleNamespace(use=lambda backend: None, pyplot=pyplot)  # type: ignore[arg-type]
    )  # fmt: skip
    logged(tmp_path, "bf16", [float(step) for step in range(20)])
    path = fp8_loss.draw(tmp_path)
    assert path is not None and path.exists()
    assert list(drawn) == ["bf16"] and drawn["bf16"][:2] == [0.0, 0.5] and drawn["bf16"][-1] == 14.5


def test_without_matplotlib_there_is_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert fp8_loss.draw(tmp_path) is None
    assert "pip install matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize("name", fp8_loss.RUNS)
def test_every_run_has_a_config_that_composes(tmp_path: Path, name: str) -> None:
    command = fp8_loss.command(name, tmp_path / "tokens", tmp_path, 500)
    config = compose(command[command.index("harness.launch") + 1 :])
    assert config.train.precision.value == name.split("-")[0]
    assert config.train.steps == 500 and config.checkpoint.every_steps > 500
    assert config.run.name == name and config.cluster.gpus_per_node == 1


def fake_runs(output: Path, monkeypatch: pytest.MonkeyPatch, body: str = "") -> None:
    """Runs that write their GPU and 100 losses, after `body`."""
    script = f"""
import json, os, pathlib, sys, time
name, output = sys.argv[1], pathlib.Path({str(output)!r})
(output / name).mkdir()
{body}
(output / name / "gpu").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
lines = [json.dumps({{"step": step, "loss": 2.0}}) for step in range(1, 101)]
(output / name / "metrics.jsonl").write_text("\\n".join(lines) + "\\n")
"""
    monkeypatch.setattr(fp8_loss, "command", lambda name, *others: [sys.executable, "-c", script, name])


def options(output: Path) -> argparse.Namespace:
    return argparse.Namespace(tokens=output, output=output, steps=100)


def test_two_lanes_make_two_runs_at_a_time_and_leave_out_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two wait for each other: one after the other they would never end."""
    wait = 'while name != "bf16-other-seed" and not all((output / n).exists() for n in ("bf16", "fp8-tensorwise")): time.sleep(0.01)'
    fake_runs(tmp_path, monkeypatch, wait)
    assert not asyncio.run(fp8_loss.train_all(fp8_loss.DEFAULT, [[4], [5]], options(tmp_path)))
    gpus = [(tmp_path / name / "gpu").read_text() for name in fp8_loss.DEFAULT]
    assert gpus[:2] == ["4", "5"] and gpus[2] in ("4", "5")
    table = (tmp_path / "fp8_loss.md").read_text()
    assert "not finished" not in table and list(rows(table)) == list(fp8_loss.DEFAULT)
    monkeypatch.setattr(fp8_loss, "command", lambda *unused: [sys.executable, "-c", "raise SystemExit(1)"])
    assert not asyncio.run(fp8_loss.train_all(fp8_loss.DEFAULT, [[]], options(tmp_path)))


def test_a_run_that_fails_is_named_and_the_others_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_runs(tmp_path, monkeypatch, 'if name == "bf16": raise ValueError("no FP8 units")')
    failures = asyncio.run(fp8_loss.train_all(["bf16", "fp8-tensorwise"], [[]], options(tmp_path)))
    assert len(failures) == 1 and "bf16 failed" in failures[0] and "no FP8 units" in failures[0]
    assert len(fp8_loss.losses(tmp_path / "fp8-tensorwise")) == 100
