import pytest

from harness.parallel.timetable import Action, layers_of_stages, own_stages, timetable, turns

SHAPES = [(pp, per_rank, count) for pp in (2, 3, 4, 8) for per_rank in (1, 2, 3) for count in (1, 2, 4, 5, 8, 13, 16)]


@pytest.mark.parametrize("backward", [True, False])
def test_every_pass_happens_once_and_after_what_it_needs(backward: bool) -> None:
    for pp, per_rank, count in SHAPES:
        at = {
            action: tick
            for tick, actions in enumerate(timetable(pp, per_rank, count, backward))
            for rank, action in enumerate(actions)
            if action is not None and action.stage in own_stages(rank, pp, per_rank)
        }
        stages, kinds = range(pp * per_rank), (False, True) if backward else (False,)
        assert at.keys() == {Action(stage, n, kind) for stage in stages for n in range(count) for kind in kinds}
        for stage in stages[1:]:
            for n in range(count):
                assert at[Action(stage - 1, n, False)] < at[Action(stage, n, False)]
                if backward:
                    assert at[Action(stage, n, True)] < at[Action(stage - 1, n, True)]
        if backward:
            for n in range(count):
                assert at[Action(stages[-1], n, False)] < at[Action(stages[-1], n, True)]


def test_idle_time_and_passes_in_flight_are_those_of_the_schedules() -> None:
    for pp, per_rank, count in SHAPES:
        if count < pp:
            continue
        ticks = timetable(pp, per_rank, count, True)
        assert len(ticks) == 2 * count * per_rank + 2 * (pp - 1), (pp, per_rank, count)
        for rank in range(pp):
            open_passes, most = 0, 0
            for tick in ticks:
                if (action := tick[rank]) is not None:
                    open_passes += -1 if action.backward else 1
                    most = max(most, open_passes)
            if per_rank == 1:
                assert most == min(pp - rank, count)
            elif count % pp == 0:
                assert most == min((per_rank - 1) * pp + 2 * (pp - 1 - rank) + 1, count * per_rank)


def test_what_one_rank_sends_the_other_receives_in_the_same_turn() -> None:
    for pp, per_rank, count in SHAPES:
        ranks = [turns(rank, pp, per_rank, count, True) for rank in range(pp)]
        messages = 0
        for together in zip(*ranks, strict=True):
            sent = {(rank, turn.send_to) for rank, turn in enumerate(together) if turn.send_to is not None}
            received = [(sender, rank) for rank, turn in enumerate(together) for sender, _ in turn.receives]
            assert sent == set(received) and len(sent) == len(received)
            messages += len(sent)
        assert messages == 2 * count * (pp * per_rank - 1)
        for number, rank in enumerate(ranks):
            due = [action for turn in rank for _, action in turn.receives]
            taken = [turn.action for turn in rank]
            assert len(set(due)) == len(due) and set(due) <= set(taken)
            assert all(action.stage in own_stages(number, pp, per_rank) for action in due)


def test_layers_are_divided_evenly_or_not_at_all() -> None:
    assert layers_of_stages(6, 3) == [range(0, 2), range(2, 4), range(4, 6)]
    with pytest.raises(ValueError, match=r"model\.num_hidden_layers=6 can't be divided into 4 .*; change parallel\.pp"):
        layers_of_stages(6, 4)
