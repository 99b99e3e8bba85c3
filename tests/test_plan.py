"""The plan's arithmetic and how it reads."""

from harness.config.compose import compose
from harness.plan import make_plan, memory_parts, render_plan


def test_memory_is_divided_as_the_layout_says() -> None:
    one = memory_parts(compose(["+exp=smol3b_1node", "parallel.dp_shard=8"]))
    assert one["weights"] * 8 == 4 * 3_075_098_624
    assert one["optimizer"] == 2 * one["weights"] == 2 * one["gradients"]
    replicated = memory_parts(compose(["+exp=smol3b_1node", "parallel.dp_shard=1", "parallel.dp_replicate=8"]))
    assert replicated["weights"] == 8 * one["weights"]
    assert replicated["activations"] == one["activations"]


def test_activation_checkpointing_and_tensor_parallel_shrink_activations() -> None:
    plain = memory_parts(compose(["+exp=smol3b_1node"]))["activations"]
    full = memory_parts(compose(["+exp=smol3b_1node", "train.activation_checkpoint=full"]))["activations"]
    tp = memory_parts(compose(["+exp=smol3b_1node", "parallel.dp_shard=4", "parallel.tp=2"]))["activations"]
    assert full < plain / 8 and plain / 2 < tp < plain


def test_checkpoint_is_twelve_bytes_per_parameter() -> None:
    plan = make_plan(compose(["+exp=smol3b", "checkpoint.keep=2"]))
    assert plan.checkpoint_bytes == 12 * plan.parameters
    assert plan.checkpoints_kept_bytes == 3 * plan.checkpoint_bytes


def test_unknown_speed_is_said_and_not_guessed() -> None:
    plan = make_plan(compose(["+exp=tiny"]))
    assert (plan.expected_tokens_per_second, plan.hours, plan.gpu_hours, plan.arrival) == (None,) * 4
    assert "not known; the run measures it" in render_plan(plan)


def test_a_measured_speed_and_steps_done_shorten_the_time() -> None:
    config = compose(["+exp=tiny"])
    whole, half = make_plan(config, 8192.0), make_plan(config, 8192.0, done_steps=60)
    assert whole.step_seconds == 0.5 and whole.hours is not None and half.hours is not None
    assert half.hours * 2 == whole.hours
    assert whole.gpu_hours is None, "no GPU, no GPU-hours"


def test_what_the_user_expects_goes_before_what_was_measured() -> None:
    config = compose(["+exp=tiny", "monitor.expected_tokens_per_second=1000"])
    assert make_plan(config, 8192.0).expected_tokens_per_second == 1000


def test_rendered_plan_names_the_figures_that_matter() -> None:
    text = render_plan(make_plan(compose(["+exp=smol3b"])))
    for figure in ("3,075,098,624", "11.14 T", "384 GPUs", "36.9 GB", "13,800 per GPU", "GPU-hours"):
        assert figure in text
