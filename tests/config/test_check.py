"""Checks across fields: each names key, value and fix, and all come at once."""

import pytest

from harness.config.check import check, time_limit_minutes
from harness.config.compose import compose
from harness.config.overrides import available
from tests.config.configs import config

GROUPS = ("optim", "schedule", "parallel")


CHANGE = "{step: 50, stages: [{weights: {demo: 1}}]}"


def found(*overrides: str) -> list[str]:
    return check(config("tiny", *overrides))


@pytest.mark.parametrize("experiment", available("exp"))
def test_our_own_experiments_pass(experiment: str) -> None:
    assert check(config(experiment)) == []


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in GROUPS for name in available(group)])
def test_our_own_optimizers_schedules_and_layouts_pass(group: str, name: str) -> None:
    assert (
        check(compose(["+exp=tiny", "cluster.ranks_per_node=8", "train.global_batch_size=32", f"{group}={name}"])) == []
    )


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("cluster.ranks_per_node=3", "train.global_batch_size=16: must be a multiple of"),
        ("parallel.dp_shard=4", "does not make the 2 ranks"),
        ("cluster.ranks_per_node=-1", "cluster.ranks_per_node=-1: must be at least 1"),
        ("cluster.nodes=2", "cluster.nodes=2: cluster=local is one machine"),
        ("cluster.time=soon", "cluster.time=soon: write minutes"),
        ("cluster.time=00:01:00", "cluster.signal_delay_seconds=120"),
        ("cluster.sbatch.nodes=4", "cluster.sbatch.nodes=4: set by the harness; use cluster.nodes"),
        ("cluster.spares=1", "cluster.spares=1"),
        ("cluster.gpus_per_node=4", "one rank per GPU"),
        ("cluster.cpus_per_node=1", "fewer cores than the 2 ranks"),
        ("data.seq_len=4096", "longer than model.max_position_embeddings=1024"),
        ("data.stage_to=''", "data.stage_to is empty"),
        ("data.stage_to=corpus/tokens/copies", "lies in data.sources.demo.path=corpus/tokens, which is to be copied"),
        ("data.sources.demo.path=s3://b/x", "data.sources.demo.path=s3://b/x: training reads files, not objects"),
        ("data.stage_threads=0", "data.stage_threads=0: must be at least 1"),
        ("data.stage_keep_free_bytes=-1", "data.stage_keep_free_bytes=-1: must be finite and not negative"),
        ("data.stage_bytes_per_second=0", "data.stage_bytes_per_second=0.0: must be positive"),
        ("data.stages=[]", "data.stages is empty"),
        ("data.read_threads=0", "data.read_threads=0: must be at least 1 and at most 64"),
        (
            "data.hedge_seconds=60",
            "data.hedge_seconds=60, data.read_timeout_seconds=30, data.give_up_seconds=600: must be",
        ),
        (
            "data.read_ahead_bytes=1000",
            "data.read_ahead_bytes=1000: must hold at least two batches, and a rank's batch of",
        ),
        ("data.stages=[{name: a, weights: {demo: 0}}]", "weights sum to 0"),
        ("data.stages=[{name: a, weights: {demo: -1}}]", "must be finite and not negative"),
        ("data.stages=[{name: a, weights: {web: 1}}]", "names web: no such data.sources"),
        ("data.stages=[{name: a, until_step: 5, weights: {demo: 1}}]", "train.steps=120 goes on after it"),
        ("data.change_at=[{step: 1, stages: [{weights: {demo: 1}}]}]", "change_at[0].step=1: must come after step 1"),
        (f"data.change_at=[{CHANGE}, {CHANGE}]", "change_at[1].step=50: must come after step 50, that of the entry"),
        ("data.change_at=[{step: 50, stages: []}]", "data.change_at[0].stages is empty: give at least one stage"),
        (
            "data.change_at=[{step: 50, stages: [{name: a, weights: {web: 1}}]}]",
            "data.change_at[0].stages[0] (a).weights names web: no such data.sources",
        ),
        (
            "data.change_at=[{step: 50, stages: [{name: a, until_step: 49, weights: {demo: 1}}, {weights: {demo: 1}}]}]",
            "data.change_at[0].stages[0] (a).until_step=49: must come after step 49",
        ),
        (
            "data.change_at=[{step: 50, stages: [{name: a, until_step: 90, weights: {demo: 1}}]}]",
            "until_step=90: train.steps=120 goes on after it; set null",
        ),
        (
            "data.change_at=[{step: 50, stages: [{name: a, until_step: 60, weights: {demo: 1}}]}, "
            "{step: 70, stages: [{weights: {demo: 1}}]}]",
            "until_step=60: the next change comes with step 70 only; set null",
        ),
        ("+data.sources.more.path=x", "data.sources.more has no weight in any stage"),
        ("model.num_attention_heads=3", "must divide"),
        ("model.head_dim=0", "model.head_dim=0: must be at least 1"),
        ("model.head_dim=25", "model.head_dim=25: must be even"),
        ("model.model_type=gpt2", "choose one of smollm3, llama, qwen3, mistral, olmo2"),
        ("model.model_type=llama", "only smollm3 has layers without rotary"),
        ("optim.name=sgd", "optim.name=sgd: choose one of adamw, muon, lamb"),
        ("optim.lr=.nan", "optim.lr=nan: must be finite"),
        ("optim.momentum=1.0", "optim.momentum=1.0: at least 0 and below 1"),
        ("optim.ema_decay=1.0", "optim.ema_decay=1.0: between 0 and 1, or null"),
        ("schedule.name=step", "schedule.name=step: choose one of wsd, cosine, linear"),
        ("schedule.overrides=[{step: 0, lr: 1e-4}]", "schedule.overrides[0].step=0: a step of the run, from 1 to"),
        ("schedule.overrides=[{step: 121, lr: 1e-4}]", "from 1 to train.steps=120"),
        ("schedule.overrides=[{step: 9, lr: 1e-4}, {step: 9, lr: 1e-5}]", "[1].step=9: must come after step 9"),
        ("schedule.overrides=[{step: 9, lr: -1.0}]", "schedule.overrides[0].lr=-1.0: must be finite and not negative"),
        ("train.z_loss=-1e-5", "train.z_loss=-1e-05: must be finite and not negative"),
        ("train.stats_every=-1", "train.stats_every=-1: must be finite and not negative"),
        ("train.spike_sigmas=2", "train.spike_sigmas=2.0: below 3 ordinary steps would be skipped"),
        ("train.spike_sigmas=-1", "train.spike_sigmas=-1.0: below 3"),
        ("train.spike_window=7", "train.spike_window=7: at least 8 steps"),
        ("train.skip=[[3,2]]", "train.skip=[3, 2]: give [from, to], the first and the last batch to leave out"),
        ("train.skip=[[0,2]]", "train.skip=[0, 2]: give [from, to]"),
        ("train.skip=[[1,2,3]]", "train.skip=[1, 2, 3]: give [from, to]"),
        ("train.eval_every=5", "train.eval_every=5: data.validation is empty"),
        ("train.early_stop_evals=2", "train.early_stop_evals=2: train.eval_every=0 never validates"),
        ("optim.betas=[0.9,1.0]", "optim.betas"),
        ("schedule.warmup_steps=100", "exceed train.steps=120"),
        ("schedule.final_lr_ratio=2", "between 0 and 1"),
        ("train.steps=0", "train.steps=0: must be at least 1"),
        ("monitor.port=70000", "monitor.port=70000"),
        ("monitor.expected_tokens_per_second=0", "must be positive"),
    ],
)
def test_each_problem_names_key_value_and_fix(override: str, says: str) -> None:
    problems = found(override)
    assert any(says in problem for problem in problems), problems


def test_blocks_of_no_size_are_named() -> None:
    asked = ["data.shuffle=blocks", "data.shuffle_block=0", "data.shuffle_group=-1"]
    assert found(*asked) == ["data.shuffle_block=0: must be at least 1", "data.shuffle_group=-1: must be at least 1"]


def test_more_ranks_than_samples_are_named() -> None:
    (problem,) = found("cluster.ranks_per_node=8", "train.global_batch_size=4", "train.micro_batch_size=1")
    assert (
        "train.global_batch_size=4: must be a multiple of train.micro_batch_size=1 x 8 data-parallel ranks" in problem
    )


def test_all_problems_come_at_once() -> None:
    assert len(found("cluster.spares=1", "data.stage_threads=0", "optim.name=sgd", "cluster.time=soon")) == 4


@pytest.mark.parametrize(
    "override",
    [
        "train.skip=[[9,12],[1,2],[3,10]]",
        "train.spike_sigmas=0",
        "optim.ema_decay=0.999",
        "schedule.overrides=[{step: 9, lr: 1e-4}, {step: 60, lr: 0.0}]",
        f"data.change_at=[{CHANGE}]",
        "data.packing=best_fit",
        "data.shuffle=blocks",
    ],
)
def test_what_a_run_may_ask_for(override: str) -> None:
    assert found(override) == []


def test_validation_with_held_out_files() -> None:
    asked = ["train.eval_every=5", "train.early_stop_evals=3", "+data.validation.web.path=held_out"]
    assert found(*asked) == []


def test_batch_suggestion_fits() -> None:
    problem = found("train.global_batch_size=18")[0]
    for suggestion in problem.rpartition("nearest: ")[2].split(" or "):
        assert found(f"train.global_batch_size={suggestion}") == []


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("30", 30), ("10:30", 11), ("02:00:00", 120), ("1-00", 1440), ("1-02:30", 1590), ("1-02:30:01", 1591)],
)
def test_time_limits_as_slurm_writes_them(text: str, minutes: int) -> None:
    assert time_limit_minutes(text) == minutes
