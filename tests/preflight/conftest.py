"""NVML without a GPU, as in the tests of observe."""

from tests.observe.conftest import no_nvml, nvml, nvml_stubs

__all__ = ["no_nvml", "nvml", "nvml_stubs"]
