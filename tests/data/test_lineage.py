"""Which pasts a config agrees with."""

import pytest

from harness.config.schema import MixtureChange, RootConfig, StageConfig
from harness.data.lineage import Entry, Lineage, how_to_change, lineage_of
from harness.data.skips import Skips


def entry(step: int, share: float = 0.5) -> Entry:
    return {"step": step, "stages": [{"until_step": None, "weights": {"web": share}}]}


def test_history_is_what_lies_behind() -> None:
    lineage = Lineage(Skips([[4, 6]]), [entry(8), entry(20)])
    assert lineage.history(3) == ([], [])
    assert lineage.history(4) == ([(4, 6)], [])  # step 4 trains on batch 7
    assert lineage.history(5) == ([(4, 6)], [entry(8)])


@pytest.mark.parametrize(
    ("ours", "theirs", "step", "agrees", "common"),
    [
        ([], [], 10, True, None),
        ([entry(11)], [], 10, True, 10),  # still to come
        ([entry(10)], [], 10, False, 9),
        ([entry(5)], [entry(5)], 10, True, None),
        ([entry(5, 0.4)], [entry(5)], 10, False, 4),  # other weights
        ([], [entry(5)], 10, False, 4),  # taken back
        ([entry(6)], [entry(5)], 10, False, 4),  # moved
        ([entry(5), entry(9)], [entry(5)], 10, False, 8),
        ([entry(5), entry(11)], [entry(5)], 10, True, 10),
    ],
)
def test_agreement(ours: list[Entry], theirs: list[Entry], step: int, agrees: bool, common: int | None) -> None:
    lineage = Lineage(changes=ours)
    assert lineage.agrees(step, [], theirs) is agrees
    assert lineage.common_steps([], theirs) == common


def test_sources_of_an_order_do_not_matter_for_which_past_it_is() -> None:
    assert Lineage(changes=[entry(5)]).agrees(9, [], [{**entry(5), "sources": {"web": {"tokens": 9}}}])


def test_skips_and_changes_both_count() -> None:
    lineage = Lineage(Skips([[2, 3]]), [entry(6)])
    assert lineage.agrees(3, [[2, 3]], []) and not lineage.agrees(3, [], [])
    assert lineage.agrees(4, [[2, 3]], [entry(6)]) and not lineage.agrees(4, [[2, 3]], [])
    assert lineage.common_steps([[2, 3]], []) == 3  # step 4 trains on batch 6
    assert lineage.common_steps([], []) == 1


def test_of_a_config() -> None:
    config = RootConfig()
    config.train.skip = [[2, 3]]
    config.data.change_at = [
        MixtureChange(7, [StageConfig("x", 9, {"web": 1, "code": 0}), StageConfig(weights={"web": 1})])
    ]
    lineage = lineage_of(config)
    stages = [{"until_step": 9, "weights": {"web": 1.0}}, {"until_step": None, "weights": {"web": 1.0}}]
    assert lineage.skips == Skips([[2, 3]]) and lineage.changes == ({"step": 7, "stages": stages},)
    assert lineage.describe() == "train.skip=[[2,3]] and data.change_at (steps 7)"


def test_what_to_type_instead() -> None:
    stages = [
        StageConfig("a", 50, {"web": 1}),
        StageConfig("b", 200, {"web": 0.5, "code": 0.5}),
        StageConfig("c", None, {"code": 1}),
    ]
    assert (
        "'data.change_at=[{step: 101, stages: [{until_step: 200, weights: {web: 0.5, code: 0.5}}, "
        "{until_step: null, weights: {code: 1}}]}]'"
    ) in how_to_change(101, stages)
