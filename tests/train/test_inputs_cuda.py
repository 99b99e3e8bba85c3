"""Batches in pinned memory that is used again: what reaches the device is what was read, however far behind it is."""

from pathlib import Path

import pytest
import torch

from harness.config.schema import StageConfig
from harness.data.loader import Loader
from harness.data.order import SampleOrder
from harness.data.token_files import open_source
from harness.train.inputs import InputMaker, buffers_for
from tests.data.loading import Watcher
from tests.tiny import END, write_tokens

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class NoAttention:
    """Attention that needs to know nothing of documents."""

    def inputs(self, position_ids: object) -> dict[str, torch.Tensor]:
        return {}


def test_memory_is_not_used_again_before_the_device_has_fetched_it(tmp_path: Path) -> None:
    source = open_source("web", write_tokens(tmp_path / "web"))
    order = SampleOrder([source], [StageConfig(weights={"web": 1.0})], seed=1, seq_len=64, global_batch_size=8)
    device = torch.device("cuda", 0)
    make = InputMaker(NoAttention(), device, 1, 0)  # type: ignore[arg-type]
    busy = torch.randn(4096, 4096, device=device)
    pairs = []
    with Loader(
        [source],
        order,
        global_batch_size=8,
        micro_batch_size=4,
        dp_rank=0,
        dp_size=1,
        start_step=0,
        stop_step=300,
        seq_len=64,
        eos_token_id=END,
        document_mask=True,
        observer=Watcher(),
        allocate=buffers_for(device),
    ) as loader:
        for batch in loader:
            for _ in range(3):
                busy = busy @ busy.T / 4096  # the device falls behind the host
            for micro in batch.micro_batches:
                assert torch.from_numpy(micro.input_ids).is_pinned()
                expected = [array.copy() for array in (micro.input_ids, micro.labels, micro.position_ids)]
                pairs.append((make(micro), expected))
            del batch, micro
        assert loader._buffers.allocated < 300
    for found, expected in pairs:
        for name, array in zip(("x", "labels", "position_ids"), expected, strict=True):
            assert found[name].dtype == torch.int64 and (found[name].cpu().numpy() == array).all()
