"""Who does what when in a pipeline: 1F1B, and interleaved 1F1B where a rank holds several stages.

Time is counted in ticks, in each of which a rank does one forward or backward pass of one micro batch through one of its
stages, or nothing. What it makes in a tick travels at the end of that tick. All ranks know the whole timetable, so that
every message is posted by sender and receiver in the same order, which is what keeps them from waiting for each other.
"""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple


class Action(NamedTuple):
    """One pass of a micro batch through a stage."""

    stage: int
    micro_batch: int
    backward: bool


class Turn(NamedTuple):
    """One tick of one rank: first the action, then the messages."""

    action: Action | None
    send_to: int | None
    """Rank of the pipeline that gets what `action` made."""
    receives: tuple[tuple[int, Action], ...]
    """Rank of the pipeline that it comes from, and the later action of this rank that it is for."""


def own_stages(pp_rank: int, pp: int, stages_per_rank: int) -> list[int]:
    """The stages of rank `pp_rank` of a pipeline over `pp` ranks: neighbours in the model are neighbours in a ring."""
    return [pp_rank + pp * number for number in range(stages_per_rank)]


def layers_of_stages(num_layers: int, num_stages: int) -> list[range]:
    """The layers of every stage. Raises ValueError where the stages do not divide the layers."""
    if num_layers % num_stages:
        raise ValueError(
            f"model.num_hidden_layers={num_layers} can't be divided into {num_stages} pipeline stages of equal length; "
            "change parallel.pp or parallel.pp_stages_per_rank"
        )
    each = num_layers // num_stages
    return [range(stage * each, (stage + 1) * each) for stage in range(num_stages)]


@cache
def turns(pp_rank: int, pp: int, stages_per_rank: int, micro_batches: int, backward: bool) -> tuple[Turn, ...]:
    """What rank `pp_rank` does, tick by tick. Without `backward`: the forward passes alone."""
    ticks = timetable(pp, stages_per_rank, micro_batches, backward)
    return tuple(_turn(tick, pp_rank, pp, stages_per_rank) for tick in ticks)


@cache
def timetable(pp: int, stages_per_rank: int, micro_batches: int, backward: bool) -> list[list[Action | None]]:
    """For every tick what each rank does. A rank takes its actions in order, each as soon as what it needs is there."""
    waiting = [_order(rank, pp, stages_per_rank, micro_batches, backward)[::-1] for rank in range(pp)]
    done: set[Action] = set()
    ticks = []
    while any(waiting):
        ready = [actions and _needs(actions[-1], pp * stages_per_rank) <= done for actions in waiting]
        tick = [actions.pop() if go else None for actions, go in zip(waiting, ready, strict=True)]
        assert any(ready), f"the ranks of a pipeline wait for each other: {waiting}"
        done.update(action for action in tick if action is not None)
        ticks.append(tick)
    return ticks


def _order(rank: int, pp: int, stages_per_rank: int, micro_batches: int, backward: bool) -> list[Action]:
    """The actions of a rank: some forward passes to fill the pipeline, then one backward pass for each forward pass."""
    stages = own_stages(rank, pp, stages_per_rank)
    forwards = _rounds(stages, pp, micro_batches, backward=False)
    if not backward:
        return forwards
    backwards = _rounds(stages[::-1], pp, micro_batches, backward=True)
    behind, longest = pp - 1 - rank, max(map(len, _split(micro_batches, pp)))
    ahead = min(behind if stages_per_rank == 1 else (stages_per_rank - 1) * longest + 2 * behind, len(forwards))
    order = forwards[:ahead]
    for number, action in enumerate(backwards):
        order += [*forwards[ahead + number : ahead + number + 1], action]
    return order


def _rounds(stages: Sequence[int], pp: int, micro_batches: int, *, backward: bool) -> list[Action]:
    """A round of micro batches goes through one stage, then through the next, before others follow."""
    rounds = _split(micro_batches, pp)
    return [Action(stage, number, backward) for numbers in rounds for stage in stages for number in numbers]


def _split(micro_batches: int, pp: int) -> list[range]:
    """Rounds of at least `pp` micro batches, where there are so many: with fewer, ranks would wait for each other."""
    rounds = max(1, micro_batches // pp)
    starts = [micro_batches * number // rounds for number in range(rounds + 1)]
    return [range(*ends) for ends in pairwise(starts)]


def _needs(action: Action, num_stages: int) -> set[Action]:
    stage, micro_batch, backward = action
    if not backward:
        return {Action(stage - 1, micro_batch, False)} if stage > 0 else set()
    if stage == num_stages - 1:
        return {Action(stage, micro_batch, False)}
    return {Action(stage, micro_batch, False), Action(stage + 1, micro_batch, True)}


def _turn(tick: Sequence[Action | None], rank: int, pp: int, stages_per_rank: int) -> Turn:
    action = tick[rank]
    following = action and _following(action, pp * stages_per_rank)
    arriving = [
        (sender, _following(made, pp * stages_per_rank)) for sender, made in enumerate(tick) if made is not None
    ]
    receives = tuple((sender, use) for sender, use in arriving if use is not None and use.stage % pp == rank)
    return Turn(action, following.stage % pp if following else None, receives)


def _following(action: Action, num_stages: int) -> Action | None:
    """The action of another stage that uses what `action` makes."""
    stage = action.stage - 1 if action.backward else action.stage + 1
    return action._replace(stage=stage) if 0 <= stage < num_stages else None
