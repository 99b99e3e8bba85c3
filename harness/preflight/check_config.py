"""Composes the config, checks it and shows what it comes to."""

from pathlib import Path

from harness.config.check import check
from harness.config.errors import ConfigError
from harness.launch.launch import make_paths_absolute, plan_for, run_folder
from harness.model.composed import composed_run
from harness.plan import Plan, plan_as_dict, render_plan
from harness.preflight.finding import Finding, Subject
from harness.run.damage import damages
from harness.text import bytes_text, count_text


def check_config(overrides: list[str], config_dir: Path | None) -> tuple[Finding, Subject | None]:
    """What it comes to, and the run for the other steps: None where the config is wrong."""
    try:
        config = composed_run(overrides, config_dir)
        problems = check(config)
    except ConfigError as error:
        problems = error.problems
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)} with the config"
        return Finding(count, failures=tuple(problems)), None
    make_paths_absolute(config)
    plan = plan_for(config)
    damaged = tuple(str(damage) for damage in damages(run_folder(config)) if damage.refused)
    finding = Finding(
        _headline(plan),
        failures=damaged,
        warnings=tuple(plan.warnings),
        detail=render_plan(plan),
        facts={"plan": plan_as_dict(plan)},
    )
    return finding, Subject(config, plan, tuple(overrides), config_dir)


def _headline(plan: Plan) -> str:
    sizes = " x ".join(f"{name} {size}" for name, size in plan.parallel.items() if size > 1) or "one rank"
    return (
        f"{count_text(plan.parameters)} parameters, {count_text(plan.tokens_total)} tokens in {plan.steps:,} steps; {sizes}; "
        f"about {bytes_text(plan.memory_per_gpu_bytes)} per {'GPU' if plan.gpus else 'rank'}; "
        f"a checkpoint is {bytes_text(plan.checkpoint_bytes)}"
    )
