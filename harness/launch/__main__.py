"""The command line of `python -m harness.launch`."""

import argparse
import errno
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.arguments import add_overrides
from harness.config.schema import ClusterKind, RootConfig

if TYPE_CHECKING:
    from harness.launch.launch import Launched

CONF_DIR = Path(__file__).resolve().parents[2] / "conf"
OK, PROBLEM, ENVIRONMENT = 0, 2, 3
"""Exit codes: fine; the config or the run is wrong; the cluster or the disk is."""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_intermixed_args(arguments)
    # nothing heavy before this line: --help must answer at once
    from harness.config.errors import ConfigError
    from harness.launch.sweep import composed

    try:
        return _launch_all(composed(options.overrides, options.config_dir, options.multirun))
    except ConfigError as error:
        return _complain(error.problems, PROBLEM)
    except KeyboardInterrupt:
        print("\nleft; the run goes on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    experiments = ", ".join(sorted(path.stem for path in (CONF_DIR / "exp").glob("*.yaml")))
    parser = argparse.ArgumentParser(
        prog="python -m harness.launch",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Submit a training run, or resume the one of that name, and return at once.",
        epilog=f"""experiments: {experiments}

  python -m harness.launch +exp=tiny cluster=local follow=true
  python -m harness.launch +exp=smol3b dry_run=true
  python -m harness.launch +exp=smol3b run.name=first cluster.partition=gpu cluster.sbatch.reservation=smol
  python -m harness.launch -m +exp=ablation_1b optim.lr=1e-4,2e-4,4e-4

Overrides are Hydra's; every key with its type and meaning stands in harness/config/schema.py.""",
    )
    add_overrides(parser)
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="one job for each combination of the values a,b,c"
    )
    return parser


def _launch_all(configs: list[RootConfig]) -> int:
    from harness.config.check import check

    problems = {config.run.name: check(config) for config in configs}
    if any(problems.values()):
        several = len(configs) > 1
        return _complain([f"{name}: {p}" if several else p for name, found in problems.items() for p in found], PROBLEM)
    results = [_launch_one(config) for config in configs]
    if len(configs) > 1:
        width = max(len(config.run.name) for config in configs)
        rows = [f"{config.run.name:<{width}}  {what}" for config, (_, what) in zip(configs, results, strict=True)]
        print("\n" + "\n".join([f"{'run':<{width}}  result", *rows]))
    return max(code for code, _ in results)


def _launch_one(config: RootConfig) -> tuple[int, str]:
    """Exit code, and what became of the run in a word or two."""
    from harness import slurm
    from harness.cluster import submit
    from harness.launch.errors import AlreadyFinished, LaunchError
    from harness.launch.follow import follow
    from harness.launch.launch import launch, plan_for, readiness, refusal, run_folder
    from harness.plan import render_plan
    from harness.run.folder import RunFolderError

    plan = plan_for(config)
    print(render_plan(plan))
    if config.dry_run:
        if config.cluster.kind is ClusterKind.slurm:
            print(f"\nBatch script\n{submit.batch_script(config, run_folder(config))}")
        blockers = [*refusal(config), *readiness(config)]
        if blockers:
            print("\nFix these before submitting from this machine:\n" + "\n".join(f"  - {text}" for text in blockers))
        print("\nDry run: nothing was submitted.")
        return OK, "dry run"
    started = time.time()
    try:
        launched = launch(config, plan)
    except LaunchError as error:
        return _complain(error.problems, PROBLEM), "not launched"
    except AlreadyFinished as done:
        print(f"\n{done}")
        return OK, "finished before"
    except (slurm.SlurmError, submit.SubmissionError, RunFolderError) as error:
        return _complain([str(error)], ENVIRONMENT), "not launched"
    except OSError as error:
        return _complain([_cannot_write(error)], ENVIRONMENT), "not launched"
    _report(launched)
    code = follow(config, launched.run, launched.job_id, started) if config.follow else OK
    return code, f"job {launched.job_id}"


def _report(launched: "Launched") -> None:
    for key, (before, after) in launched.changed.items():
        print(f"  changed    {key}: {before} -> {after}")
    if launched.resumes_from is not None:
        print(f"  resumes    from the checkpoint of step {launched.resumes_from:,}")
    print(f"\nSubmitted job {launched.job_id}\nRun folder    {launched.run.path}")
    print(f"Watch it      python -m harness.status {launched.run.path}", flush=True)


def _cannot_write(error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    fix = ". Free some space, or set runs_dir to a folder on another file system" if full else ""
    return f"{error.filename or 'the run folder'}: {error.strerror or error}{fix}"


def _complain(problems: list[str], code: int) -> int:
    print("Not launched:\n" + "\n".join(f"  - {problem}" for problem in problems), file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
