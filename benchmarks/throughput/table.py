"""The report: a Markdown table of all runs, the best of each program, and the raw figures beside it."""

import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.throughput.layouts import FSDP, Layout
from benchmarks.throughput.settings import OURS, RIVAL, WARMUP_STEPS, WINDOW_STEPS, Measurement, Setting
from benchmarks.throughput.tokens import MEAN_DOCUMENT
from harness.model.family import FLOPS_FORMULA

UNKNOWN = "-"
VERSIONS = ("torch", "torchtitan", "torchao", "transformers")


@dataclass(frozen=True)
class Report:
    """What was measured and on what. `measurements` are in the order in which they ran."""

    gpu: str
    """Number and name of the GPUs."""
    peak_flops: float | None
    """Dense bf16 peak of one GPU; None where it is not known, and then there is no MFU."""
    driver: str
    python: str
    commit: str
    command: str
    measurements: list[Measurement]

    def write(self, path: Path) -> None:
        """`path` gets the table, the file beside it that ends in .json the raw figures."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.render())
        path.with_suffix(".json").write_text(json.dumps(self.as_dict(), indent=1) + "\n")

    def as_dict(self) -> dict[str, Any]:
        own = {key: value for key, value in vars(self).items() if key != "measurements"}
        return {**own, "measurements": [measurement.as_dict() for measurement in self.measurements]}

    def render(self) -> str:
        """The whole report in Markdown."""
        versions: dict[str, str] = {}
        for measurement in self.measurements:
            versions |= measurement.versions
        named = ", ".join(f"{name} {versions[name]}" for name in VERSIONS if name in versions)
        return "\n".join(
            [
                f"    {self.gpu}, driver {self.driver}; Python {self.python}, {named or 'no program ran'}; "
                f"harness {self.commit}",
                f"    {self.command}",
                "",
                *self._runs(),
                *self._best(),
                *self._layouts(),
                "",
                *self._notes(),
                "",
            ]
        )

    def _runs(self) -> list[str]:
        lines = [
            "| run | program | shape | precision | micro batch | layout | tokens/s/GPU | ratio | MFU | peak GiB "
            "| first step s | remark |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for number, measurement in enumerate(self.measurements, 1):
            setting = measurement.setting
            cells = [
                str(number),
                measurement.program,
                setting.shape,
                setting.precision,
                str(setting.micro_batch),
                _layout(setting),
                _rate(measurement.tokens_per_second),
                _ratio(measurement.tokens_per_second, self._rival_of(number - 1)),
                _share(measurement.mfu(self.peak_flops)),
                _gibibytes(measurement.peak_memory_bytes),
                UNKNOWN if measurement.first_step_seconds is None else f"{measurement.first_step_seconds:.0f}",
                _remark(measurement),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return lines

    def _rival_of(self, index: int) -> float | None:
        """Of the rival, beside our run number `index`."""
        ours = self.measurements[index]
        if ours.program != OURS or ours.setting.document_mask:
            return None
        return self._nearest(index, RIVAL, ours.setting)

    def _nearest(self, index: int, program: str, setting: Setting) -> float | None:
        """Tokens/s/GPU of the program's run in this setting, on the same GPU, that ran nearest to run `index`; the later of
        two."""
        there = [
            (abs(other - index), -other, run.tokens_per_second)
            for other, run in enumerate(self.measurements)
            if (run.program, run.setting, run.device) == (program, setting, self.measurements[index].device)
        ]
        return min(there, key=lambda found: found[:2])[2] if there else None

    def _best(self) -> list[str]:
        """One line for each shape and precision that both programs managed at any micro batch."""
        groups = list(dict.fromkeys((run.setting.shape, run.setting.precision) for run in self.measurements))
        rows = []
        for shape, precision in groups:
            ours, rival = (self._fastest(program, shape, precision) for program in (OURS, RIVAL))
            if ours and rival:
                cells = [shape, precision, _at(*ours), _at(*rival), _ratio(ours[0], rival[0])]
                rows.append(f"| {' | '.join(cells)} |")
        if not rows:
            return []
        head = ["", "At each program's best micro batch:", ""]
        return [*head, f"| shape | precision | {OURS} | {RIVAL} | ratio |", "|---|---|---|---|---|", *rows]

    def _fastest(self, program: str, shape: str, precision: str) -> tuple[float, Setting] | None:
        """Median over the runs of its fastest setting with FSDP, and which that is."""
        rates: dict[Setting, list[float]] = {}
        for run in self.measurements:
            setting, rate = run.setting, run.tokens_per_second
            comparable = not setting.document_mask and setting.layout == Layout()
            if (run.program, setting.shape, setting.precision) == (program, shape, precision) and rate and comparable:
                rates.setdefault(setting, []).append(rate)
        found = [(statistics.median(each), setting) for setting, each in rates.items()]
        return max(found, key=lambda pair: pair[0], default=None)

    def _layouts(self) -> list[str]:
        """One line for each of our runs in another layout that ran with FSDP too."""
        rows = []
        for index, run in enumerate(self.measurements):
            setting = run.setting
            if run.program != OURS or setting.layout == Layout():
                continue
            fsdp = self._nearest(index, OURS, replace(setting, layout=Layout()))
            if fsdp is None or run.tokens_per_second is None:
                continue
            cells = [setting.shape, setting.precision, str(setting.micro_batch), _layout(setting)]
            cells += [_rate(run.tokens_per_second), _rate(fsdp), _ratio(run.tokens_per_second, fsdp)]
            rows.append(f"| {' | '.join(cells)} |")
        if not rows:
            return []
        head = ["", f"Our layouts against {FSDP}, with as many tokens a step:", ""]
        columns = f"| shape | precision | micro batch | layout | tokens/s/GPU | with {FSDP} | ratio |"
        return [*head, columns, "|---|---|---|---|---|---|---|", *rows]

    def _notes(self) -> list[str]:
        setting = self.measurements[0].setting if self.measurements else None
        notes = [
            f"Medians over windows of {WINDOW_STEPS} steps after the first {WARMUP_STEPS}"
            + (f", {setting.steps} steps a run, sequence {setting.seq_len}" if setting else "")
            + ". Random tokens; fp32 master weights and AdamW state; one micro batch a step on each GPU; runs in the order shown.",
            f"MFU counts {FLOPS_FORMULA} (N without an input embedding that is not tied)"
            + (f" against {self.peak_flops / 1e12:.0f} TFLOP/s, the dense bf16 peak, also for FP8."
               if self.peak_flops else "; not given, since this GPU's peak is not known."),
            "Peak: most device memory in use on one GPU, by NVML.",
            *self._arrangement(),
        ]  # fmt: skip
        return [f"- {note}" for note in (*notes, *self._differences())]

    def _arrangement(self) -> list[str]:
        """How programs and GPUs were placed, where that is not one program after the other with FSDP."""
        notes = []
        if any(run.device is not None for run in self.measurements):
            notes.append(
                "Two programs ran side by side, each on a GPU of its own, then swapped. Ratios are of runs on the same GPU; "
                "the best are medians over both."
            )
        if any(run.setting.layout != Layout() for run in self.measurements):
            notes.append(
                "Layouts: a step has the sequences of one micro batch for each GPU in all of them. With tp a micro batch is tp "
                f"times as large, with cp and pp a step has cp x pp of them. {RIVAL} runs with {FSDP} alone."
            )
        return notes

    def _differences(self) -> list[str]:
        """What is not the same in both programs, as far as it was measured."""
        notes = []
        extra = {
            rival.setting.shape: rival.parameters - ours.parameters
            for ours in self.measurements
            for rival in self.measurements
            if ours.program == OURS and rival.program == RIVAL and ours.setting.shape == rival.setting.shape
            if rival.parameters > ours.parameters > 0
        }
        if extra:
            sizes = ", ".join(f"{shape} {count / 1e6:.0f}M" for shape, count in extra.items())
            notes.append(f"{RIVAL} can't tie the output head to the embedding, so it holds more parameters: {sizes}.")
        if any(run.program == RIVAL and run.setting.precision != "bf16" for run in self.measurements):
            notes.append(f"FP8: {RIVAL}'s output head stays in bf16, as its documentation advises.")
        if any(run.setting.document_mask for run in self.measurements):
            notes.append(f"Document masks: random lengths, {MEAN_DOCUMENT} tokens on average; {RIVAL} runs without.")
        return notes


def _remark(measurement: Measurement) -> str:
    setting: Setting = measurement.setting
    remarks = [
        measurement.error,
        f"GPU {measurement.device}" if measurement.device is not None else "",
        "document masks" if setting.document_mask else "",
        f"{setting.activation_checkpoint} activation checkpointing" if setting.activation_checkpoint != "none" else "",
    ]
    return "; ".join(remark for remark in remarks if remark).replace("|", "/")


def _layout(setting: Setting) -> str:
    return setting.layout.name(setting.gpus) if setting.gpus > 1 else UNKNOWN


def _ratio(ours: float | None, theirs: float | None) -> str:
    return UNKNOWN if ours is None or theirs is None else f"{ours / theirs:.3f}"


def _rate(rate: float | None) -> str:
    return UNKNOWN if rate is None else f"{rate:,.0f}"


def _share(share: float | None) -> str:
    return UNKNOWN if share is None else f"{share:.1%}"


def _gibibytes(size: int | None) -> str:
    return UNKNOWN if size is None else f"{size / 2**30:.0f}"


def _at(rate: float, setting: Setting) -> str:
    return f"{_rate(rate)} (micro batch {setting.micro_batch})"
