"""What is made of the kernels of a trace, and the trainer that it is taken of, on CPU."""

import math
import subprocess
import sys

import pytest

from benchmarks.step_profile import kind, report

SMALL = [
    "cluster.gpus_per_node=0", "cluster.ranks_per_node=1", "model.num_hidden_layers=1", "model.hidden_size=32",
    "model.num_attention_heads=4", "model.num_key_value_heads=2", "model.intermediate_size=64", "data.seq_len=32",
]  # fmt: skip


def test_kernels_are_counted_by_what_they_are_for() -> None:
    kernels = {
        "nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT": (100.0, 10.0),
        "sm80_xmma_gemm_f32f32_f32f32_f32_nn_n_tilesize64x32x8_stage3": (1.0, 1.0),
        "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16": (20.0, 2.0),
        "triton_poi_fused__unsafe_view_mul_silu_silu_backward_view_0": (5.0, 2.0),
        "swiglu_backward_cast": (4.0, 2.0),
        "cast_both_gradient": (3.0, 2.0),
        "triton_poi_fused__to_copy_add_copy_copy__div_lerp_mul_rsub_sqrt_sub_where_0": (2.0, 9.0),
        "_to_gradient": (1.5, 4.0),
        "Memset (Device)": (0.5, 600.0),
    }
    text = report(140.0, kernels, 1)
    assert text.startswith("140.0 ms a step, 137.0 ms busy\n")
    for row in (
        "| 101.0 | matrix products |", "| 20.0 | attention |", "| 9.0 | gated activation, with its casts |",
        "| 2.0 | optimizer |", "| 1.5 | loss, but for its products |", "| 0.5 | the rest |",
        "| 100.00 | 10 | nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT |",
    ):  # fmt: skip
        assert row in text
    assert "| 20.00 | 2 |" not in text
    assert kind("cast") == kind("cast_both_gradient") == "other casts, with what is computed on the way"


PROGRAM = f"""
from benchmarks.one_gpu import trainer_on_random_tokens
with trainer_on_random_tokens("smollm3_3b", 2, 2, {SMALL!r}) as trainer:
    for batch in trainer.loader:
        result = trainer.stepper.run(batch, 1e-5, stop=False, fenced=False, with_statistics=False).result()
        print("step", batch.step, "loss", result.loss)
"""


def test_the_trainer_takes_steps() -> None:
    """In a process of its own, which it makes a rank of."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    losses = [float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("step ")]
    assert losses == pytest.approx([math.log(128_256)] * 2, rel=0.05)
