import time
from collections.abc import Callable, Iterator

import pytest

from harness.observe import xid as xid_module
from harness.observe.collector import CollectorDisabled
from harness.observe.nvml_library import DriverAway
from harness.observe.xid import XidCollector
from tests.observe.conftest import NvmlState
from tests.observe.pages import Page, page_of
from tests.waiting import wait_for


@pytest.fixture
def listen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., XidCollector]]:
    monkeypatch.setattr(xid_module, "WAIT_MILLISECONDS", 50)
    monkeypatch.setattr(xid_module, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(xid_module, "NO_GPU_RETRY_SECONDS", 0.05)
    made: list[XidCollector] = []

    def make(visible: str | None = None) -> XidCollector:
        made.append(XidCollector(visible))
        return made[-1]

    yield make
    for collector in made:
        collector.close()


def scrape(collector: XidCollector) -> Page:
    return page_of(collector.collect())


def count(collector: XidCollector, gpu: int, xid: int) -> float | None:
    return scrape(collector).get("harness_gpu_xid_errors_total", gpu=str(gpu), xid=str(xid))


def test_the_same_xid_twice_counts_twice(nvml: NvmlState, listen) -> None:
    nvml("gpu 0", "gpu 1")
    collector = listen()
    assert not scrape(collector).samples
    first = nvml.event(1, 79)
    before = time.time()
    nvml("gpu 0", "gpu 1", first)
    wait_for(lambda: count(collector, 1, 79) == 1)
    nvml("gpu 0", "gpu 1", first, nvml.event(1, 79), nvml.event(0, 31))
    wait_for(lambda: count(collector, 1, 79) == 2)
    wait_for(lambda: count(collector, 0, 31) == 1)
    last = scrape(collector).get("harness_gpu_xid_last_timestamp_seconds", gpu="1", xid="79")
    assert last is not None and before <= last <= time.time()


def test_other_jobs_gpus_are_not_listened_to(nvml: NvmlState, listen) -> None:
    nvml("gpu 0", "gpu 1", nvml.event(0, 79), nvml.event(1, 48))
    collector = listen("1")
    wait_for(lambda: count(collector, 1, 48) == 1)
    assert count(collector, 0, 79) is None


def test_goes_on_listening_while_one_gpu_is_lost(nvml: NvmlState, listen) -> None:
    nvml("gpu 0 lost=1", "gpu 1", nvml.event(1, 79))
    collector = listen()
    wait_for(lambda: count(collector, 1, 79) == 1)


def test_listens_again_after_an_error(nvml: NvmlState, listen, monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    wait, failures = pynvml.nvmlEventSetWait_v2, []

    def lost_once(events: object, milliseconds: int) -> object:
        if not failures:
            failures.append(1)
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return wait(events, milliseconds)

    monkeypatch.setattr(pynvml, "nvmlEventSetWait_v2", lost_once)
    nvml("gpu 0", nvml.event(0, 94))
    collector = listen()
    scrape(collector)
    wait_for(lambda: count(collector, 0, 94) == 1)
    assert failures


def test_a_gpu_that_appears_later_is_listened_to(nvml: NvmlState, listen) -> None:
    nvml("# no GPU yet")
    collector = listen()
    scrape(collector)
    nvml("gpu 0", nvml.event(0, 13))
    wait_for(lambda: count(collector, 0, 13) == 1)


def test_close_ends_the_thread(nvml: NvmlState, listen) -> None:
    nvml("gpu 0")
    collector = listen()
    scrape(collector)
    thread = collector._thread
    assert thread is not None and thread.is_alive()
    collector.close()
    assert not thread.is_alive()


def test_no_library_is_no_error(no_nvml: None) -> None:
    with pytest.raises(CollectorDisabled, match=r"libnvidia-ml\.so\.1"):
        XidCollector().collect()


def test_a_driver_that_is_away_is_an_error_until_it_is_back(nvml: NvmlState, listen) -> None:
    nvml("driver 0")
    collector = listen()
    with pytest.raises(DriverAway):
        collector.collect()
    nvml("gpu 0", nvml.event(0, 63))
    wait_for(lambda: count(collector, 0, 63) == 1)
