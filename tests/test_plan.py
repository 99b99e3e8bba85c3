"""The plan's arithmetic and how it reads."""

from harness.config.schema import RootConfig
from harness.plan import make_plan, render_plan
from tests.config.configs import config


def smol(*overrides: str) -> RootConfig:
    return config("smol3b_1node", *overrides)


def test_memory_is_the_estimate_without_recomputation_until_the_gpu_is_known() -> None:
    text = {
        mode: render_plan(make_plan(smol(f"train.activation_checkpoint={mode}"))) for mode in ("auto", "none", "full")
    }
    assert "chosen on the GPU at start" in text["auto"]
    assert "chosen on the GPU" not in text["none"] + text["full"]
    auto, none, full = (make_plan(smol(f"train.activation_checkpoint={mode}")) for mode in ("auto", "none", "full"))
    assert auto.memory_per_gpu_bytes == none.memory_per_gpu_bytes > full.memory_per_gpu_bytes
    assert sum(auto.memory_parts_bytes.values()) == auto.memory_per_gpu_bytes
    assert "chosen on the GPU" not in render_plan(make_plan(config("tiny"))), "there is none"


def test_layout_is_shown_by_its_dimensions() -> None:
    plan = make_plan(smol("parallel.dp_shard=2", "parallel.pp=2", "parallel.cp=2", "train.global_batch_size=24"))
    assert plan.parallel == {"pp": 2, "dp_replicate": 1, "dp_shard": 2, "cp": 2, "tp": 1}
    assert "8 GPUs: pp 2 x dp_shard 2 x cp 2, 4 micro batches a step" in render_plan(plan)


def test_another_layout_than_asked_for_is_a_warning() -> None:
    olmo = ["model.model_type=olmo2", "model.no_rope_layer_interval=0", "parallel.tp=2", "parallel.dp_shard=4"]
    plan = make_plan(smol(*olmo))
    assert plan.parallel["tp"] == 1 and plan.parallel["dp_shard"] == 8
    assert "warning    parallel.tp=2: olmo2 has no tensor-parallel plan" in render_plan(plan)


def test_checkpoint_holds_what_the_optimizer_keeps() -> None:
    adamw, muon, ema = (
        make_plan(smol(text)) for text in ("optim.name=adamw", "optim.name=muon", "optim.ema_decay=0.99")
    )
    assert ema.checkpoint_bytes == 16 * ema.parameters
    assert 8 * muon.parameters < muon.checkpoint_bytes < adamw.checkpoint_bytes == 12 * adamw.parameters


def test_checkpoint_is_twelve_bytes_per_parameter() -> None:
    plan = make_plan(config("smol3b", "checkpoint.keep=2"))
    assert plan.checkpoint_bytes == 12 * plan.parameters
    # the two that are kept, the one that is being written, and the last one before the decay
    assert plan.checkpoints_kept_bytes == 4 * plan.checkpoint_bytes
    assert make_plan(config("smol3b", "checkpoint.keep=2", "schedule.decay_steps=0")).checkpoints_kept_bytes == (
        3 * plan.checkpoint_bytes
    )


def test_unknown_speed_is_said_and_not_guessed() -> None:
    plan = make_plan(config("tiny"))
    assert (plan.expected_tokens_per_second, plan.hours, plan.gpu_hours, plan.arrival) == (None,) * 4
    assert "not known; the run measures it" in render_plan(plan)


def test_a_measured_speed_and_steps_done_shorten_the_time() -> None:
    whole, half = make_plan(config("tiny"), 8192.0), make_plan(config("tiny"), 8192.0, done_steps=60)
    assert whole.step_seconds == 0.5 and whole.hours is not None and half.hours is not None
    assert half.hours * 2 == whole.hours
    assert whole.gpu_hours is None, "no GPU, no GPU-hours"


def test_what_the_user_expects_goes_before_what_was_measured() -> None:
    asked = config("tiny", "monitor.expected_tokens_per_second=1000")
    assert make_plan(asked, 8192.0).expected_tokens_per_second == 1000


def test_rendered_plan_names_the_figures_that_matter() -> None:
    text = render_plan(make_plan(config("smol3b")))
    for figure in ("3,075,098,624", "11.14 T", "384 GPUs", "36.9 GB", "13,800 per GPU", "GPU-hours"):
        assert figure in text


def test_documents_that_are_trained_with_other_positions_than_transformers_takes_are_a_warning() -> None:
    factors = "[" + ",".join(["1.0"] * 16) + "]"
    scaling = [
        "model.rope_scaling.rope_type=longrope", f"model.rope_scaling.short_factor={factors}",
        f"model.rope_scaling.long_factor={factors}", "data.seq_len=256",
    ]  # fmt: skip
    beyond = make_plan(config("tiny", *scaling, "model.rope_scaling.original_max_position_embeddings=128"))
    assert (
        "warning    model.rope_scaling: sequences of data.seq_len=256 are trained with the long factors"
        in render_plan(beyond)
    )
    within = make_plan(config("tiny", *scaling, "model.rope_scaling.original_max_position_embeddings=256"))
    assert "long factors" not in render_plan(within)
