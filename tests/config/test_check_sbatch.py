"""Flags of sbatch that a user may set."""

import pytest

from harness.config.check_sbatch import REFUSED, SET_BY_US, check_sbatch
from harness.config.schema import ClusterConfig


def problems(**flags: str | None) -> list[str]:
    return list(check_sbatch(ClusterConfig(sbatch={key: value for key, value in flags.items()})))


@pytest.mark.parametrize("flag", [*SET_BY_US, *REFUSED])
def test_what_would_break_the_run_is_refused_with_the_reason(flag: str) -> None:
    for key in (flag, flag.replace("-", "_")):
        (said,) = problems(**{key: "x"})
        assert said == f"cluster.sbatch.{key}=x: " + (
            f"set by the harness; use {SET_BY_US[flag]}" if flag in SET_BY_US else REFUSED[flag]
        )


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("requeue", "false", "a run survives lost nodes and its time limit by being requeued; leave it out"),
        ("requeue", "no", "a run survives lost nodes"),
        ("no-requeue", "true", "a run survives lost nodes"),
        ("no_requeue", "", "a run survives lost nodes"),
        ("no-req", "true", "sbatch would take it for --no-requeue; write the flag in full"),
        ("partit", "urgent", "sbatch would take it for --partition"),
        ("n", "4", "sbatch would take it for --"),
        ("C", "a100", "not the name of an sbatch flag"),
        ("--comment", "x", "not the name of an sbatch flag"),
        ("comment", "a\n#SBATCH --no-requeue", "must be one line of printable text"),
    ],
)
def test_other_ways_to_say_it(flag: str, value: str, says: str) -> None:
    (said,) = problems(**{flag: value})
    assert says in said and "\n" not in said


@pytest.mark.parametrize("flag", ["requeue", "reservation", "gpus", "gres", "wait-all-nodes", "time-min", "nodelist", "mem", "mem_per_cpu",
                                  "constraint", "export", "exclusive", "hold", "dependency", "comment"])  # fmt: skip
def test_all_others_are_the_users(flag: str) -> None:
    assert problems(**{flag: "true"}) == []


def test_a_refused_flag_that_is_switched_off_is_none() -> None:
    assert problems(**{"no-requeue": "false", "no-kill": None, "requeue": None}) == []


@pytest.mark.parametrize("key", ["partition", "account", "qos"])
@pytest.mark.parametrize("value", ["", " ", "a\nb"])
def test_names_that_are_none(key: str, value: str) -> None:
    (said,) = check_sbatch(ClusterConfig(**{key: value}))  # type: ignore[arg-type]
    assert said.startswith(f"cluster.{key}=") and "or null for Slurm's default" in said


def test_nodes_to_stay_off() -> None:
    assert not list(check_sbatch(ClusterConfig(exclude=["n4", "n[7-9]", "a-b.c,d"])))
    assert len(list(check_sbatch(ClusterConfig(exclude=["", "n 4", "n4\n"])))) == 3
