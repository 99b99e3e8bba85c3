from collections.abc import Callable

import pytest

from harness.observe import nvml as nvml_module
from harness.observe.collector import CollectorDisabled
from harness.observe.nvml import GpuCollector
from harness.observe.nvml_library import VisibleDevices
from tests.observe.conftest import NvmlState
from tests.observe.pages import Page, page_of

BUSY = "util=97 used_mib=1024 total_mib=81920 temp=61 power_mw=650500 energy_mj=123456 sm=1755 sm_max=1980"


def gpu(index: int, *more: str) -> str:
    return " ".join((f"gpu {index} {BUSY}", *more))


def scrape(collector: GpuCollector) -> Page:
    return page_of(collector.collect())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """The collector's clock, which stands still until told to go on."""
    now = [1000.0]
    monkeypatch.setattr(nvml_module.time, "monotonic", lambda: now[0])

    def pass_time(seconds: float) -> None:
        now[0] += seconds

    return pass_time


def test_base_units(nvml: NvmlState) -> None:
    nvml(gpu(0, "corrected=7 uncorrected=2"), gpu(1))
    page = scrape(GpuCollector())
    for name, value in {
        "utilization_ratio": 0.97,
        "memory_used_bytes": 2**30,
        "temperature_celsius": 61,
        "power_watts": 650.5,
        "sm_clock_hertz": 1.755e9,
        "sm_clock_max_hertz": 1.98e9,
        "energy_joules_total": 123.456,
    }.items():
        assert page.get(f"harness_gpu_{name}", gpu="0") == pytest.approx(value)
        assert page.get(f"harness_gpu_{name}", gpu="1") == pytest.approx(value)
    assert page.get("harness_gpu_visible") == 2
    assert page.get("harness_gpu_ecc_errors_total", gpu="0", kind="corrected") == 7
    assert page.get("harness_gpu_ecc_errors_total", gpu="0", kind="uncorrected") == 2
    rows = {
        kind: page.get("harness_gpu_remapped_rows", gpu="0", kind=kind) for kind in ("correctable", "uncorrectable")
    }
    assert rows == {"correctable": 1, "uncorrectable": 2}
    assert page.get("harness_gpu_remapped_rows", gpu="0", kind="pending") == 1
    assert {s["name"] for s in page.series("harness_gpu_info")} == {"NVIDIA Stub 80GB"}
    assert page.types["harness_gpu_energy_joules"] == "counter"


@pytest.mark.parametrize(
    ("mask", "reasons"),
    [
        ("0x0", set()),
        ("0x1", set()),  # idle
        ("0x2", set()),  # clocks set by the user
        ("0x100", set()),  # display
        ("0x20", {"thermal_sw"}),
        ("0x40", {"thermal_hw"}),
        ("0x8", {"hw_slowdown"}),
        ("0x80", {"power_brake"}),
        ("0x4", {"power_cap"}),
        ("0x48", {"hw_slowdown", "thermal_hw"}),
    ],
)
def test_throttling_counts_the_harmful_reasons(nvml: NvmlState, clock, mask: str, reasons: set[str]) -> None:
    nvml(gpu(0, f"throttle={mask}"))
    collector = GpuCollector()
    scrape(collector)
    clock(2.0)
    page = scrape(collector)
    seconds = {
        reason: page.get("harness_gpu_throttle_seconds_total", gpu="0", reason=reason)
        for reason in ("thermal_sw", "thermal_hw", "hw_slowdown", "power_brake", "power_cap")
    }
    assert seconds == {reason: 2.0 if reason in reasons else 0.0 for reason in seconds}


def test_throttle_seconds_add_up_over_samples(nvml: NvmlState, clock) -> None:
    collector = GpuCollector()
    for mask, seconds in (("0x40", 0.0), ("0x40", 1.0), ("0x0", 1.0), ("0x40", 1.5), ("0x40", 3600.0)):
        clock(seconds)
        nvml(gpu(0, f"throttle={mask}"), gpu(1))
        page = scrape(collector)
    total = 1.0 + 1.5 + nvml_module.LONGEST_SAMPLE_SECONDS  # after a long gap one sample does not stand for all of it
    assert page.get("harness_gpu_throttle_seconds_total", gpu="0", reason="thermal_hw") == total
    assert page.get("harness_gpu_throttle_seconds_total", gpu="1", reason="thermal_hw") == 0


def test_a_lost_gpu_takes_its_series_along_and_the_others_stay(
    nvml: NvmlState, caplog: pytest.LogCaptureFixture
) -> None:
    nvml(gpu(0), gpu(1))
    collector = GpuCollector()
    scrape(collector)
    nvml(gpu(0), gpu(1, "lost=1"))
    for _ in range(3):
        page = scrape(collector)
    assert page.get("harness_gpu_visible") == 1
    assert page.get("harness_gpu_power_watts", gpu="0") == 650.5
    assert not [labels for _, labels in page.samples if ("gpu", "1") in labels]
    assert len([record for record in caplog.records if "GPU 1 is lost" in record.message]) == 1
    nvml(gpu(0), gpu(1))
    assert scrape(collector).get("harness_gpu_visible") == 2


def test_what_is_dear_is_asked_for_seldom(nvml: NvmlState, clock, monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    asked: list[str] = []
    for name in ("TotalEnergyConsumption", "MaxClockInfo", "Name"):
        real = getattr(pynvml, f"nvmlDeviceGet{name}")
        monkeypatch.setattr(
            pynvml, f"nvmlDeviceGet{name}", lambda *a, real=real, name=name: (asked.append(name), real(*a))[1]
        )
    nvml(gpu(0))
    collector = GpuCollector()
    for _ in range(12):  # one minute
        page = scrape(collector)
        clock(5.0)
    assert asked.count("TotalEnergyConsumption") == 2
    assert asked.count("MaxClockInfo") == asked.count("Name") == 1
    assert page.get("harness_gpu_energy_joules_total", gpu="0") == pytest.approx(123.456)
    assert page.get("harness_gpu_sm_clock_max_hertz", gpu="0") == 1.98e9


def test_a_gpu_that_comes_back_is_asked_who_it_is_and_keeps_its_counters(nvml: NvmlState, clock) -> None:
    collector = GpuCollector()
    for state in (gpu(0, "throttle=0x8"), gpu(0, "throttle=0x8"), gpu(0, "lost=1"), gpu(0).replace("1980", "2000")):
        nvml(state)
        clock(1.0)
        page = scrape(collector)
    assert page.get("harness_gpu_sm_clock_max_hertz", gpu="0") == 2e9
    assert page.get("harness_gpu_throttle_seconds_total", gpu="0", reason="hw_slowdown") == 1.0


def test_what_an_old_driver_lacks_is_absent(nvml: NvmlState, clock) -> None:
    nvml(gpu(0, "throttle=0x40"), driver="old")
    collector = GpuCollector()
    scrape(collector)
    clock(1.0)
    page = scrape(collector)
    assert not page.series("harness_gpu_remapped_rows")
    assert page.get("harness_gpu_power_watts", gpu="0") == 650.5
    assert page.get("harness_gpu_throttle_seconds_total", gpu="0", reason="thermal_hw") == 1.0  # under its old name


def test_no_library_is_no_error(no_nvml: None) -> None:
    with pytest.raises(CollectorDisabled, match=r"libnvidia-ml\.so\.1"):
        list(GpuCollector().collect())


def test_a_driver_that_is_away_shows_as_no_visible_gpu(nvml: NvmlState, caplog: pytest.LogCaptureFixture) -> None:
    nvml("driver 0", gpu(0))
    collector = GpuCollector()
    for _ in range(3):
        page = scrape(collector)
    assert page.get("harness_gpu_visible") == 0
    assert page.names() == {"harness_gpu_visible"}
    assert len([record for record in caplog.records if "no GPU can be seen" in record.message]) == 1
    nvml(gpu(0))
    assert scrape(collector).get("harness_gpu_visible") == 1


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        (None, {"0", "1", "2"}),
        ("0,2", {"0", "2"}),
        (" 1 ", {"1"}),
        ("GPU-000000a1", {"1"}),
        ("GPU-000000a0-0000-0000-0000-000000000000,2", {"0", "2"}),
        ("", set()),
        ("MIG-11111111-2222", {"0", "1", "2"}),
    ],
)
def test_only_the_jobs_gpus(nvml: NvmlState, visible: str | None, indices: set[str]) -> None:
    nvml(gpu(0), gpu(1), gpu(2))
    page = scrape(GpuCollector(visible))
    assert {s["gpu"] for s in page.series("harness_gpu_power_watts")} == indices
    assert page.get("harness_gpu_visible") == len(indices)


def test_uuids_are_asked_for_only_where_needed() -> None:
    def refuse() -> str:
        raise AssertionError("asked for a UUID")

    assert (0, refuse) in VisibleDevices("0")
    assert (1, refuse) not in VisibleDevices("0")


def test_close_lets_go_of_the_driver_once(nvml: NvmlState, monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    nvml(gpu(0))
    collector, shutdowns = GpuCollector(), []
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: shutdowns.append(1))
    collector.close()
    assert not shutdowns  # never opened
    scrape(collector)
    collector.close()
    collector.close()
    assert len(shutdowns) == 1
