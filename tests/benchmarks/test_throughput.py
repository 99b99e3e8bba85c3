"""The comparison with torchtitan: its commands, what is read from logs, the table; and a real run of our side on CPU."""

import argparse
import asyncio
import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import processes
from benchmarks.gpus import NoGpus, PeakMemory, environment, visible
from benchmarks.throughput import __main__ as throughput
from benchmarks.throughput import ours, rival
from benchmarks.throughput.layouts import Layout, parse_layout
from benchmarks.throughput.settings import OURS, RIVAL, Measurement, Setting, shape_config, window_rates
from benchmarks.throughput.table import Report
from benchmarks.throughput.tokens import END_OF_DOCUMENT, write_random_tokens
from harness.config.compose import compose
from harness.config.layout import layout
from harness.data.token_files import open_source

SETTING = Setting("smollm3_3b", "bf16", micro_batch=4, gpus=2, steps=40)


def measured(program: str, rate: float, setting: Setting = SETTING, parameters: int = 3_075_098_624) -> Measurement:
    rates = [rate - 50, rate, rate + 50]
    return Measurement(program, setting, rates, parameters=parameters, flops_per_token=22_074_470_400)


def report(*measurements: Measurement, peak: float | None = 989e12) -> Report:
    return Report(
        "2 x NVIDIA H200", peak, "580.1", "3.12.3", "abc", "python -m benchmarks.throughput", list(measurements)
    )


def rows(text: str) -> list[list[str]]:
    """Cells of each line of the first table, without its head."""
    table = text.split("\n\n")[1].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_rates_leave_the_warm_up_and_parts_of_windows_out() -> None:
    def time_of(step: int) -> float:
        return 10.0 * min(step, 10) + 1.0 * max(0, step - 10)  # the first ten steps are slow

    marks = [(step, step * 1000, time_of(step)) for step in range(1, 38)]
    assert window_rates(marks, dataclasses.replace(SETTING, steps=30)) == [500.0, 500.0]


def test_random_tokens_are_a_source_that_the_harness_accepts(tmp_path: Path) -> None:
    folder = write_random_tokens(tmp_path, vocab_size=128_256, tokens=50_000)
    source = open_source("random", folder)
    ids = np.fromfile(folder / "random.ds", "<u4")
    ends = np.fromfile(folder / "random.ds.index", "<u8").astype(np.int64)
    assert source.tokens == 50_000 and source.token_size == 4
    assert ids.max() < 128_256 and ids.max() > 2**16
    assert np.array_equal(np.flatnonzero(ids == END_OF_DOCUMENT), ends - 1)
    assert 700 < 50_000 / len(ends) < 1400


@pytest.mark.parametrize("shape", ["smollm3_3b", "llama_1b"])
def test_the_rival_gets_the_dimensions_of_our_shape(shape: str) -> None:
    model = shape_config(shape)
    given = rival.model_arguments(model)
    # torchtitan's own arithmetic of its feed-forward width
    width = int(given["ffn_dim_multiplier"] * int(2 * (4 * given["dim"]) / 3))
    width = given["multiple_of"] * ((width + given["multiple_of"] - 1) // given["multiple_of"])
    assert width == model.intermediate_size
    assert (given["dim"], given["n_layers"], given["vocab_size"]) == (2048, model.num_hidden_layers, 128_256)
    assert (given["n_heads"], given["n_kv_heads"]) == (model.num_attention_heads, model.num_key_value_heads)


def test_a_shape_that_the_rival_can_not_take_is_a_row_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(shape_config("smollm3_3b"), model_type="qwen3")
    monkeypatch.setattr(rival, "shape_config", lambda shape: other)
    assert "qwen3 has no counterpart" in asyncio.run(rival.measure(SETTING, tmp_path, 1.0, [0])).error
    with pytest.raises(rival.NoCounterpart, match="head_dim"):
        rival.model_arguments(dataclasses.replace(shape_config("llama_1b"), head_dim=128))


def test_the_rivals_command_starts_one_rank_per_gpu_on_the_same_gpus() -> None:
    command = rival.command(SETTING, shape_config("smollm3_3b"), Path("/x"))
    assert "--nproc-per-node=2" in command
    options = dict(zip(command[7::2], command[8::2], strict=True))
    assert json.loads(options.pop("--model"))["dim"] == 2048
    assert options == {
        "--precision": "bf16", "--micro-batch": "4", "--seq-len": "4096", "--steps": "40",
        "--activation-checkpoint": "none", "--dump-folder": "/x",
    }  # fmt: skip
    assert rival.environment([2, 3])["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_our_overrides_make_one_micro_batch_a_step_and_no_checkpoint(tmp_path: Path) -> None:
    setting = dataclasses.replace(
        SETTING, precision="fp8_rowwise", document_mask=True, activation_checkpoint="selective"
    )
    config = compose(ours.overrides(setting, tmp_path, tmp_path, "ours"))
    assert config.train.global_batch_size == 8 and config.train.micro_batch_size == 4
    assert (config.train.precision.value, config.train.fp8_recipe.value) == ("fp8", "rowwise")
    assert config.train.activation_checkpoint.value == "selective" and config.data.document_mask
    assert config.checkpoint.every_steps > 1000 * SETTING.steps and config.train.steps > 1000 * SETTING.steps
    assert config.cluster.gpus_per_node == 2 and config.data.stages[0].weights == {"random": 1.0}


@pytest.mark.parametrize(
    ("text", "gpus", "name", "micro_batch", "accumulation"),
    [
        ("dp_shard=2", 2, "FSDP", 4, 1),
        ("dp_replicate=2", 2, "dp_replicate=2", 4, 1),
        ("tp=2", 2, "tp=2", 8, 1),
        ("cp=2", 2, "cp=2", 4, 2),
        ("pp=2", 2, "pp=2", 4, 2),
        ("dp_replicate=2, tp=2", 8, "dp_replicate=2, dp_shard=2, tp=2", 8, 1),
        ("cp=2,tp=2,pp=2", 8, "cp=2, tp=2, pp=2", 8, 4),
    ],
)
def test_a_step_has_the_same_tokens_in_every_layout(
    tmp_path: Path, text: str, gpus: int, name: str, micro_batch: int, accumulation: int
) -> None:
    found = parse_layout(text, gpus)
    setting = dataclasses.replace(SETTING, gpus=gpus, layout=found)
    config = compose(ours.overrides(setting, tmp_path, tmp_path, "ours"))
    composed = layout(config)
    assert found.name(gpus) == name
    assert config.train.micro_batch_size == micro_batch and composed.accumulation_steps == accumulation
    assert composed.tokens_per_step == gpus * 4 * 4096
    assert composed.dp_shard == found.dp_shard(gpus)
    assert (composed.dp_replicate, composed.cp, composed.tp, composed.pp) == (
        found.dp_replicate, found.cp, found.tp, found.pp,
    )  # fmt: skip


def test_long_sequences_are_within_the_models_positions(tmp_path: Path) -> None:
    config = compose(ours.overrides(dataclasses.replace(SETTING, seq_len=32768), tmp_path, tmp_path, "ours"))
    assert (config.data.seq_len, config.model.max_position_embeddings) == (32768, 32768)
    short = compose(ours.overrides(dataclasses.replace(SETTING, seq_len=512), tmp_path, tmp_path, "ours"))
    assert (short.data.seq_len, short.model.max_position_embeddings) == (512, 4096)
    long = dataclasses.replace(SETTING, seq_len=32768)
    command = rival.command(long, shape_config("smollm3_3b"), Path("/x"))
    assert command[command.index("--seq-len") + 1] == "32768"


def planned(*arguments: str) -> list[throughput.Round]:
    return list(throughput.plan(throughput.parse(list(arguments))))


def test_both_programs_run_in_turns() -> None:
    rounds = planned("--micro-batches", "2,4", "--precision", "bf16,fp8", "--repeats", "2", "--gpus", "2")
    assert all(len(turns) == 1 for turns in rounds)
    runs = [turn for turns in rounds for turn in turns]
    assert len(runs) == 2 * (2 * 2 * 2 + 1)
    assert [program for program, _ in runs[:8]] == [OURS, RIVAL] * 4
    assert [setting.micro_batch for _, setting in runs[:9]] == [2, 2, 2, 2, 4, 4, 4, 4, 4]
    assert [setting.document_mask for _, setting in runs[:9]] == [False] * 8 + [True]
    alone = planned("--no-rival", "--no-document-masks")
    assert [program for turns in alone for program, _ in turns] == [OURS, OURS]


def test_lanes_swap_the_programs_and_run_one_without_the_other_on_both() -> None:
    rounds = planned("--lanes", "--micro-batches", "4")
    assert [[program for program, _ in turns] for turns in rounds] == [[OURS, RIVAL], [RIVAL, OURS], [OURS, OURS]]
    assert [setting.document_mask for turns in rounds for _, setting in turns] == [False] * 4 + [True] * 2


def test_the_rival_takes_part_in_fsdp_alone() -> None:
    rounds = planned("--gpus", "2", "--layout", "fsdp", "--layout", "tp=2", "--seq-len", "8192", "--micro-batches", "1")
    runs = [turn for turns in rounds for turn in turns]
    assert [(program, setting.layout, setting.document_mask) for program, setting in runs] == [
        (OURS, Layout(), False),
        (RIVAL, Layout(), False),
        (OURS, Layout(tp=2), False),
        (OURS, Layout(), True),
    ]
    assert {setting.seq_len for _, setting in runs} == {8192}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "15"], "--steps 15: must be a multiple of 10, at least 20"),
        (["--precision", "int8"], "--precision int8: choose from bf16, fp8, fp8_rowwise"),
        (["--gpus", "0"], "--gpus 0: must be at least 1"),
        (["--micro-batches", "2,0"], "--micro-batches 2,0: each must be at least 1"),
        (["--micro-batches", "two"], "--micro-batches"),
        (["--output", "x.json"], "--output x.json"),
        (["--seq-len", "0"], "--seq-len 0: must be at least 1"),
        (["--lanes", "--gpus", "2"], "--lanes: each program has one GPU, but --gpus 2"),
        (["--gpus", "2", "--layout", "tp=4"], "--layout tp=4: the sizes must divide --gpus 2"),
        (["--gpus", "4", "--layout", "tp=2,dp_shard=4"], "--layout tp=2,dp_shard=4: --gpus 4 leaves dp_shard=2"),
        (["--layout", "tp"], "--layout tp: 'tp': write NAME=SIZE once for each of dp_shard, dp_replicate, cp, tp, pp"),
        (["--layout", "tp=1,tp=1"], "'tp=1': write NAME=SIZE once"),
        (["--layout", "ep=1"], "'ep=1': write"),
        (["--layout", "cp=0"], "'cp=0': write"),
    ],
)
def test_options_that_make_no_sense_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        throughput.parse(arguments)
    assert message in capsys.readouterr().err


def test_the_table_has_ratio_and_mfu() -> None:
    text = report(measured(OURS, 29_000), measured(RIVAL, 25_000, parameters=3_337_766_912)).render()
    ours_row, rival_row = rows(text)
    assert ours_row[:9] == ["1", OURS, "smollm3_3b", "bf16", "4", "FSDP", "29,000", "1.160", "64.7%"]
    assert rival_row[6:9] == ["25,000", "-", "55.8%"]
    assert "989 TFLOP/s" in text and "6N + 12*L*H*S" in text and "smollm3_3b 263M" in text


def test_the_best_of_each_program_at_any_micro_batch_is_compared() -> None:
    small = dataclasses.replace(SETTING, micro_batch=2)
    masked = dataclasses.replace(SETTING, document_mask=True)
    runs = [measured(OURS, 28_000, small), measured(RIVAL, 23_000, small), measured(OURS, 27_000)]
    runs += [measured(RIVAL, 25_000), measured(OURS, 40_000, masked)]
    text = report(*runs).render()
    assert [row[7] for row in rows(text)] == ["1.217", "-", "1.080", "-", "-"]
    assert "| smollm3_3b | bf16 | 28,000 (micro batch 2) | 25,000 (micro batch 4) | 1.120 |" in text
    assert "document masks" in rows(text)[4][11] and "Document masks: random lengths" in text


def test_other_layouts_are_compared_with_our_fsdp_and_never_with_the_rival() -> None:
    tensor = dataclasses.replace(SETTING, layout=Layout(tp=2))
    small = dataclasses.replace(tensor, micro_batch=2)
    runs = [
        measured(OURS, 26_000),
        measured(RIVAL, 25_000),
        measured(OURS, 23_400, tensor),
        measured(OURS, 30_000, small),
    ]
    text = report(*runs).render()
    assert [row[5] for row in rows(text)] == ["FSDP", "FSDP", "tp=2", "tp=2"]
    assert [row[7] for row in rows(text)] == ["1.040", "-", "-", "-"]
    table = text.split("Our layouts against FSDP")[1].split("\n\n")[1].splitlines()
    assert table[2:] == ["| smollm3_3b | bf16 | 4 | tp=2 | 23,400 | 26,000 | 0.900 |"], "no FSDP run at micro batch 2"
    assert "| 26,000 (micro batch 4) | 25,000 (micro batch 4) | 1.040 |" in text
    assert f"{RIVAL} runs with FSDP alone" in text
    assert "Our layouts" not in report(*runs[:2]).render() and "Layouts:" not in report(*runs[:2]).render()


def test_lanes_are_compared_on_the_same_gpu_and_medians_over_both() -> None:
    one = dataclasses.replace(SETTING, gpus=1)
    given = [(RIVAL, 20_000, 1), (OURS, 24_000, 0), (OURS, 22_000, 1), (RIVAL, 22_000, 0)]
    runs = [dataclasses.replace(measured(program, rate, one), device=gpu) for program, rate, gpu in given]
    text = report(*runs).render()
    assert [(row[7], row[11]) for row in rows(text)] == [
        ("-", "GPU 1"), ("1.091", "GPU 0"), ("1.100", "GPU 1"), ("-", "GPU 0"),
    ]  # fmt: skip
    assert "| 23,000 (micro batch 4) | 21,000 (micro batch 4) | 1.095 |" in text
    assert "Two programs ran side by side" in text


def test_an_unknown_gpu_has_no_mfu_and_a_failure_sinks_nothing(tmp_path: Path) -> None:
    failed = Measurement(RIVAL, SETTING, error="out of memory", log_tail=["last line"])
    found = report(measured(OURS, 29_000), failed, peak=None)
    ours_row, rival_row = rows(found.render())
    assert ours_row[7:9] == ["-", "-"] and rival_row[6] == "-" and rival_row[11] == "out of memory"
    assert "best micro batch" not in found.render()
    found.write(tmp_path / "deep" / "t.md")
    raw = json.loads((tmp_path / "deep" / "t.json").read_text())
    assert raw["measurements"][0]["tokens_per_second_per_gpu"] == 29_000
    assert raw["measurements"][1]["log_tail"] == ["last line"] and raw["commit"] == "abc"


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        ("step 1\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate\nChildFailedError: x", "out of memory"),
        ("[rank0]: ModuleNotFoundError: No module named 'tyro'\nx.errors.ChildFailedError: a", "ModuleNotFoundError: No module named 'tyro'"),
        ("a\nkilled by the kernel\n\n", "killed by the kernel"),
        ("", "it printed nothing"),
    ],
)  # fmt: skip
def test_the_reason_of_a_failure_is_found_in_the_log(tmp_path: Path, printed: str, reason: str) -> None:
    (tmp_path / "log").write_text(printed)
    assert processes.why_failed(tmp_path / "log") == reason


def test_the_reason_of_a_refused_launch_is_its_problems(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("Plan of run x\nNot launched:\n  - train.precision=fp8: no\n  - data.x: bad\n")
    assert processes.refusal(tmp_path / "log") == "train.precision=fp8: no; data.x: bad"


def test_ending_a_program_ends_what_it_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program itself is over; what it started is not, and does not listen to SIGTERM."""
    monkeypatch.setattr(processes, "TERMINATE_SECONDS", 0.5)
    log = tmp_path / "log"
    process = processes.start(["bash", "-c", "(trap '' TERM; echo up; exec sleep 60) &"], log)
    process.wait()
    assert processes.poll(lambda: "up" in log.read_text() or None, time.monotonic() + 20)
    assert processes.alive(process)
    processes.end_group(process)
    assert processes.poll(lambda: None if processes.alive(process) else True, time.monotonic() + 20)


def fake_rival(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let `script` be what is started as the rival."""
    monkeypatch.setattr(rival, "command", lambda *unused: [sys.executable, "-c", script])


def test_the_rivals_line_is_read_and_the_program_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = {
        "program": RIVAL, "rates": [1.0, 3.0, 2.0], "parameters": 5, "flops_per_token": 7, "versions": {"torch": "2"},
        "first_step_time": time.time() + 9,
    }  # fmt: skip
    fake_rival(monkeypatch, f"import time; print('step: 1'); print({json.dumps(line)!r}, flush=True); time.sleep(600)")
    found = asyncio.run(rival.measure(SETTING, tmp_path, 60.0, [0]))
    assert (found.error, found.tokens_per_second, found.parameters) == ("", 2.0, 5)
    assert found.first_step_seconds is not None and 8 < found.first_step_seconds < 10


@pytest.mark.parametrize(
    ("script", "seconds", "error"),
    [
        ("import time; time.sleep(600)", 0.5, "not done after 0 s"),
        ("raise ImportError('no torchtitan')", 60.0, "ImportError: no torchtitan"),
        (f'print(\'{{"program": "{RIVAL}", "error": "out of memory"}}\')', 60.0, "out of memory"),
    ],
)
def test_a_rival_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, seconds: float, error: str
) -> None:
    fake_rival(monkeypatch, script)
    found = asyncio.run(rival.measure(SETTING, tmp_path, seconds, [0]))
    assert found.error == error and not found.rates


class Lane:
    """A GPU that is always free."""

    def __init__(self, device: int) -> None:
        self.devices = [device]

    def memory_used(self) -> int:
        return 7

    async def wait_until_free(self, before: int, seconds: float) -> bool:
        return True


def lanes_of(tmp_path: Path, options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch, script: str) -> Report:
    """What `run_all` brings where each program is `script`, which prints a result."""
    fake_rival(monkeypatch, script)
    monkeypatch.setattr(ours, "measure", rival.measure)
    found = report()
    processes.run_watched(throughput.run_all(list(throughput.plan(options)), [Lane(4), Lane(5)], found, options))  # type: ignore[list-item]
    return found


def test_lanes_run_at_the_same_time_on_gpus_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each program waits for the other of its round: one after the other they would never end."""
    script = f"""
import json, os, pathlib, time
gpu, there = int(os.environ["CUDA_VISIBLE_DEVICES"]), pathlib.Path({str(tmp_path)!r})
(there / f"gpu-{{gpu}}").touch()
while not (there / f"gpu-{{9 - gpu}}").exists(): time.sleep(0.01)
line = {{"program": {RIVAL!r}, "rates": [float(gpu)], "parameters": 1, "flops_per_token": 1, "versions": {{}}, "first_step_time": 0}}
print(json.dumps(line))
"""
    arguments = ["--lanes", "--micro-batches", "4", "--no-document-masks", "--output", str(tmp_path / "t.md")]
    found = lanes_of(tmp_path, throughput.parse([*arguments, "--seconds-per-run", "30"]), monkeypatch, script)
    assert sorted((run.device, run.rates, run.peak_memory_bytes) for run in found.measurements) == [
        (4, [4.0], 7), (4, [4.0], 7), (5, [5.0], 7), (5, [5.0], 7),
    ]  # fmt: skip
    assert len(json.loads((tmp_path / "t.json").read_text())["measurements"]) == 4
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("1/4 ") and "tokens/s/GPU" in said[0] and "on GPU" in said[0]


def test_what_was_measured_outlives_an_end_in_the_middle_and_nothing_runs_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One program is done, the other hangs; the benchmark is ended."""
    line = {
        "program": RIVAL,
        "rates": [1.0],
        "parameters": 1,
        "flops_per_token": 1,
        "versions": {},
        "first_step_time": 0,
    }
    script = f"import os, time; os.environ['CUDA_VISIBLE_DEVICES'] == '4' and print({json.dumps(line)!r}, flush=True); time.sleep(600)"
    options = throughput.parse(["--lanes", "--no-document-masks", "--output", str(tmp_path / "t.md")])
    started = []
    start = rival.start
    monkeypatch.setattr(rival, "start", lambda *given: started.append(start(*given)) or started[-1])
    write = Report.write

    def written(self: Report, path: Path) -> None:
        write(self, path)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Report, "write", written)
    with pytest.raises(SystemExit, match="143"):
        lanes_of(tmp_path, options, monkeypatch, script)
    assert [run["rates"] for run in json.loads((tmp_path / "t.json").read_text())["measurements"]] == [[1.0]]
    assert len(started) == 2 and not any(processes.alive(process) for process in started)


def test_the_visible_gpus_are_the_first_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5,6")
    assert visible(2) == [3, 5]
    assert environment(visible(1)) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "3"}
    with pytest.raises(NoGpus, match="CUDA_VISIBLE_DEVICES=3, 5,6: shows 3 GPUs, 4 are needed"):
        visible(4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f2c")
    with pytest.raises(NoGpus, match="by their numbers"):
        visible(1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible(2) == [0, 1] and environment([]) == {}


def test_peak_memory_is_the_most_that_was_seen() -> None:
    values = [3, 9, 4]
    with PeakMemory(lambda: values.pop(0) if values else 1) as memory:
        processes.poll(lambda: None if values else True, time.monotonic() + 20)
    assert memory.peak == 9


@pytest.mark.e2e
def test_our_side_is_measured_and_leaves_nothing_running(tmp_path: Path) -> None:
    setting = Setting("tiny", "bf16", micro_batch=1, gpus=0, steps=20, seq_len=64)
    found = asyncio.run(ours.measure(setting, tmp_path, 120.0, []))
    assert (found.error, found.log_tail) == ("", [])
    assert len(found.rates) == 1 and found.rates[0] > 0 and found.parameters == 1_311_872
    assert found.first_step_seconds is not None and found.first_step_seconds > 0
    assert "torch" in found.versions
    assert not list((tmp_path / OURS / "checkpoints").glob("step-*"))
    listed = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True).stdout.split()
    assert not [
        pid for pid in listed if "Z" not in Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0]
    ]


def test_our_side_says_why_it_was_not_launched(tmp_path: Path) -> None:
    setting = Setting("tiny", "bf16", micro_batch=1, gpus=0, steps=20, seq_len=63, layout=Layout(cp=2))
    found = asyncio.run(ours.measure(setting, tmp_path, 60.0, []))
    assert "parallel.cp=2" in found.error and not found.rates
