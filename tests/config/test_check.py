"""Checks across fields: each names key, value and fix, and all come at once."""

import pytest

from harness.config.check import check, time_limit_minutes
from harness.config.compose import compose


def found(*overrides: str) -> list[str]:
    return check(compose(list(overrides)))


@pytest.mark.parametrize("experiment", ["tiny", "smol3b", "smol3b_1node", "ablation_1b"])
def test_our_own_experiments_pass(experiment: str) -> None:
    assert found(f"+exp={experiment}") == []


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("cluster.ranks_per_node=3", "train.global_batch_size=16: must be a multiple of"),
        ("parallel.dp_shard=4", "does not make the 2 ranks"),
        ("parallel.tp=4", "parallel.tp=4: must divide model.num_key_value_heads=2"),
        ("parallel.cp=2", "parallel.cp=2: not supported yet"),
        ("parallel.pp=2", "parallel.pp=2: not supported yet"),
        ("train.precision=fp8", "train.precision=fp8: not supported yet"),
        ("cluster.nodes=2", "cluster.nodes=2: cluster=local is one machine"),
        ("cluster.time=soon", "cluster.time=soon: write minutes"),
        ("cluster.time=00:01:00", "cluster.signal_delay_seconds=120"),
        ("cluster.sbatch.nodes=4", "cluster.sbatch.nodes=4: set by the harness; use cluster.nodes"),
        ("cluster.spares=1", "cluster.spares=1"),
        ("cluster.gpus_per_node=4", "one rank per GPU"),
        ("cluster.cpus_per_node=1", "fewer cores than the 2 ranks"),
        ("data.seq_len=4096", "longer than model.max_position_embeddings=1024"),
        ("data.stage_to=/scratch", "data.stage_to=/scratch"),
        ("data.stages=[]", "data.stages is empty"),
        ("data.stages=[{name: a, weights: {demo: 0}}]", "weights sum to 0"),
        ("data.stages=[{name: a, weights: {demo: -1}}]", "must be finite and not negative"),
        ("data.stages=[{name: a, weights: {web: 1}}]", "names web: no such data.sources"),
        ("data.stages=[{name: a, until_step: 5, weights: {demo: 1}}]", "train.steps=120 goes on after it"),
        ("+data.sources.more.path=x", "data.sources.more has no weight in any stage"),
        ("model.num_attention_heads=3", "must divide"),
        ("model.model_type=gpt2", "choose one of smollm3, llama, qwen3"),
        ("model.model_type=llama", "only smollm3 has layers without rotary"),
        ("optim.name=sgd", "optim.name=sgd: choose adamw"),
        ("optim.betas=[0.9,1.0]", "optim.betas"),
        ("schedule.warmup_steps=100", "exceed train.steps=120"),
        ("schedule.final_lr_ratio=2", "between 0 and 1"),
        ("train.steps=0", "train.steps=0: must be at least 1"),
        ("monitor.port=70000", "monitor.port=70000"),
        ("monitor.expected_tokens_per_second=0", "must be positive"),
    ],
)
def test_each_problem_names_key_value_and_fix(override: str, says: str) -> None:
    problems = found("+exp=tiny", override)
    assert any(says in problem for problem in problems), problems


def test_all_problems_come_at_once() -> None:
    assert len(found("+exp=tiny", "cluster.spares=1", "data.stage_to=/x", "optim.name=sgd", "cluster.time=soon")) == 4


def test_batch_suggestion_fits() -> None:
    problem = found("+exp=tiny", "train.global_batch_size=18")[0]
    for suggestion in problem.rpartition("nearest: ")[2].split(" or "):
        assert found("+exp=tiny", f"train.global_batch_size={suggestion}") == []


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("30", 30), ("10:30", 11), ("02:00:00", 120), ("1-00", 1440), ("1-02:30", 1590), ("1-02:30:01", 1591)],
)
def test_time_limits_as_slurm_writes_them(text: str, minutes: int) -> None:
    assert time_limit_minutes(text) == minutes
