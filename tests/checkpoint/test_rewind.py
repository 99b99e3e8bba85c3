"""After train.skip was changed a run goes back to the newest checkpoint whose past is the one that it asks for."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from harness.checkpoint import folders
from harness.checkpoint.manifest import CorruptCheckpoint, Manifest
from harness.checkpoint.reports import Reports
from harness.checkpoint.restore import CannotResume, restore
from harness.checkpoint.rewind import choose, new_rate, other_order
from harness.checkpoint.save import Saver
from harness.config.schema import Decay, LrOverride, OptimConfig, ScheduleConfig
from harness.data.lineage import Entry, Lineage
from harness.data.order import FORMAT
from harness.data.skips import Skips
from harness.observe.board import Board, board_path
from harness.optim.schedule import Curve
from harness.run.folder import RunFolder
from tests.checkpoint.conftest import IDENTITY, Alone, state_of
from tests.ranks import in_ranks

Ranges = list[list[int]]


def save(alone: Alone, steps: list[int], skip: Ranges) -> None:
    saver = alone.saver(lineage=Lineage(Skips(skip)))
    for step in steps:
        saver.save(state_of(step), step, step * 100)


def resume(alone: Alone, skip: Ranges) -> int | None:
    """Step that the run goes on from; its weights must be that step's."""
    state = state_of(0.0)
    settings = {"identity": IDENTITY, "verify": True, "group": alone.group, "reports": alone.reports}
    manifest = restore(alone.run, state, lineage=Lineage(Skips(skip)), **settings)  # type: ignore[arg-type]
    if manifest is None:
        return None
    assert torch.equal(state["model.w"], state_of(manifest.step)["model.w"])
    return manifest.step


def kept(alone: Alone) -> list[int]:
    return folders.complete_steps(alone.run.checkpoints_dir)


def test_manifests_record_what_was_left_out_before_them(alone: Alone) -> None:
    save(alone, [2, 3, 8], [[4, 6], [12, 12], [20, 30]])
    manifests = [Manifest.read(folders.complete_path(alone.run.checkpoints_dir, step)) for step in (2, 3, 8)]
    assert [manifest.skips for manifest in manifests] == [(), (), ((4, 6),)]  # step 8 trains on batch 11


def test_goes_back_before_the_range_and_keeps_what_it_leaves(alone: Alone, capsys: pytest.CaptureFixture[str]) -> None:
    save(alone, [10, 20, 30, 40], [])
    assert resume(alone, [[25, 27]]) == 20
    assert kept(alone) == [20, 10]
    folder = alone.run.checkpoints_dir / "abandoned" / "attempt-000"
    assert sorted(os.listdir(folder)) == ["step-00000030", "step-00000040"]
    assert (alone.run.checkpoints_dir / "latest").read_text() == "step-00000020\n"
    (event,) = [event for event in alone.run.events() if event["event"] == "rewind"]
    assert (event["from_step"], event["to_step"], event["skip"]) == (40, 20, [[25, 27]])
    out = capsys.readouterr().out
    assert f"checkpoints of steps 30, 40 are now in {folder} and may be deleted" in out
    save(alone, [30], [[25, 27]])  # made again with other batches
    assert resume(alone, [[25, 27]]) == 30
    assert Manifest.read(folder / "step-00000030").skips == ()
    assert Manifest.read(alone.run.checkpoints_dir / "step-00000030").skips == ((25, 27),)
    assert len([event for event in alone.run.events() if event["event"] == "rewind"]) == 1


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([], [[41, 50]], 40),  # still to come
        ([], [[40, 50]], 30),  # the very last batch
        ([], [[11, 11]], 10),
        ([[15, 16]], [[15, 16]], 40),
        ([[16, 16], [15, 15]], [[15, 16]], 40),  # written otherwise, the same batches
        ([[15, 16]], [], 10),  # taken back
        ([[15, 16]], [[15, 18]], 10),  # longer
        ([[15, 16]], [[15, 16], [42, 50]], 30),  # step 40 trained on batch 42
        ([[15, 16]], [[15, 16], [43, 50]], 40),
        ([[15, 16], [25, 25]], [[15, 16]], 20),
        ([[100, 200]], [], 40),  # never reached
    ],
)
def test_newest_with_the_same_past(before: Ranges, after: Ranges, expected: int, alone: Alone) -> None:
    save(alone, [10, 20, 30, 40], before)
    assert resume(alone, after) == expected
    assert kept(alone) == [step for step in (40, 30, 20, 10) if step <= expected]


def entry(step: int, share: float = 0.5) -> Entry:
    return {
        "step": step,
        "stages": [{"until_step": None, "weights": {"web": share}}],
        "sources": {"web": {"tokens": 9}},
    }


def test_a_changed_mixture_goes_back_as_skipped_batches_do(alone: Alone, capsys: pytest.CaptureFixture[str]) -> None:
    def resume_with(*changes: Entry, identity: dict[str, object] = IDENTITY) -> int:
        lineage = Lineage(changes=changes)
        manifest = restore(
            alone.run,
            state_of(0.0),
            lineage=lineage,
            identity=identity,
            verify=True,
            group=alone.group,
            reports=alone.reports,
        )
        assert manifest is not None
        return manifest.step

    saver = alone.saver(lineage=Lineage(changes=[entry(15), entry(100)]))
    for step in (10, 20, 30):
        saver.save(state_of(step), step, step * 100)
    found = [Manifest.read(folders.complete_path(alone.run.checkpoints_dir, step)).changes for step in (10, 20)]
    assert found == [(), (entry(15),)]
    assert resume_with(entry(15), entry(31)) == 30
    other_files = {**entry(15), "sources": {"web": {"tokens": 8}}}
    with pytest.raises(CannotResume, match=r"data\.change_at\.15\.sources\.web\.tokens: 9 in the checkpoint, 8 now"):
        resume_with(other_files)
    with pytest.raises(CannotResume, match=r"'data\.change_at=\[\{step: 31, stages: \[\.\.\.\]\}\]'"):
        resume_with(entry(15), identity={**IDENTITY, "data.stages.0.weights.web": 1.0})
    assert resume_with(entry(15), entry(25)) == 20
    (event,) = [event for event in alone.run.events() if event["event"] == "rewind"]
    assert (event["to_step"], event["change_at"]) == (20, [15, 25])
    assert "since data.change_at (steps 15, 25) changes what came after" in capsys.readouterr().out
    assert resume_with(entry(15, 0.4)) == 10
    with pytest.raises(
        CannotResume, match=r"data.change_at \(steps 5\): from step 5 on .* a checkpoint of step 4 or before"
    ):
        resume_with(entry(5))


def test_older_manifests_have_left_out_nothing(alone: Alone) -> None:
    save(alone, [10, 20], [])
    for step in (10, 20):
        path = folders.complete_path(alone.run.checkpoints_dir, step) / "manifest.json"
        content = json.loads(path.read_text())
        del content["skips"], content["changes"]
        path.write_text(json.dumps(content))
    assert resume(alone, []) == 20
    assert resume(alone, [[12, 13]]) == 10


def test_says_which_checkpoint_would_be_needed(alone: Alone) -> None:
    save(alone, [20, 30], [[3, 4]])
    with pytest.raises(CannotResume) as error:
        resume(alone, [[3, 4], [12, 13]])
    assert str(error.value).startswith(
        "train.skip=[[3,4],[12,13]]: from step 10 on the run has trained on other batches than that, so a checkpoint of "
        f"step 9 or before is needed. The oldest that can be read in {alone.run.checkpoints_dir} is of step 20, made with "
        "train.skip=[[3,4]]. Set that again, with ranges added that begin after batch 22"
    )
    assert kept(alone) == [30, 20] and not (alone.run.checkpoints_dir / "abandoned").exists()
    with pytest.raises(CannotResume, match="no checkpoint can be gone on from"):
        resume(alone, [[1, 4]])
    assert resume(alone, [[3, 4], [23, 23]]) == 20


def test_a_run_without_checkpoints_begins(alone: Alone) -> None:
    assert resume(alone, [[1, 5]]) is None


def test_corrupt_ones_are_passed_over_on_the_way_back(alone: Alone) -> None:
    save(alone, [10, 20, 30, 40], [])
    (folders.complete_path(alone.run.checkpoints_dir, 20) / "__0_0.distcp").unlink()
    (folders.complete_path(alone.run.checkpoints_dir, 40) / "manifest.json").write_text("{")
    assert resume(alone, [[25, 25]]) == 10
    assert alone.events()[-3:] == [("checkpoint_corrupt", 40), ("checkpoint_corrupt", 20), ("rewind", 10)]
    assert os.listdir(alone.run.checkpoints_dir / "abandoned" / "attempt-000") == ["step-00000030"]


def test_another_run_is_refused_before_anything_moves(alone: Alone) -> None:
    save(alone, [10, 20], [])
    alone_identity = {"identity": {**IDENTITY, "data.seed": 2}, "verify": True}
    with pytest.raises(CannotResume, match=r"data\.seed: 1 in the checkpoint, 2 now"):
        restore(
            alone.run,
            state_of(0.0),
            lineage=Lineage(Skips([[15, 15]])),
            group=alone.group,
            reports=alone.reports,
            **alone_identity,  # type: ignore[arg-type]
        )
    assert kept(alone) == [20, 10]


def test_going_back_twice_keeps_both(alone: Alone) -> None:
    for skip in ([], [[15, 15]], [[15, 16]]):
        save(alone, [10, 20] if not skip else [20], skip)
        resume(alone, [[15, 15]] if not skip else [[15, 16]])
    assert resume(alone, []) == 10
    names = sorted(os.listdir(alone.run.checkpoints_dir / "abandoned" / "attempt-000"))
    assert names == ["step-00000020", "step-00000020.2", "step-00000020.3"]


def test_a_history_that_is_none_is_corrupt(alone: Alone) -> None:
    save(alone, [10], [])
    folder = folders.complete_path(alone.run.checkpoints_dir, 10)
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**content, "skips": [[5, 3]]}))
    with pytest.raises(CorruptCheckpoint, match="is not complete"):
        Manifest.read(folder)


def test_the_launcher_can_ask_before(alone: Alone) -> None:
    save(alone, [10, 20, 30], [])
    choice = choose(alone.run.checkpoints_dir, Lineage(Skips([[15, 15]])))
    assert (choice.usable, choice.disagreeing) == ([10], [30, 20])
    assert kept(alone) == [30, 20, 10]


def _rewind_together(rank: int, world_size: int, folder: Path, block: bool) -> tuple[int, list[float]] | str:
    run = RunFolder(folder)
    reports = Reports(Board.open_for_write(board_path(folder / "boards", rank)), run.ledger(3), rank)
    group = dist.new_group(backend="gloo")
    settings = {"identity": IDENTITY, "group": group, "reports": reports}
    saver = Saver(run, attempt=3, keep=None, in_background=False, **settings)  # type: ignore[arg-type]
    for step in (10, 20, 30):
        saver.save({"model.w": torch.full((4,), float(step)), f"own.{rank}": torch.full((2,), float(step))}, step, step)
    if block and rank == 0:
        (run.checkpoints_dir / "abandoned").write_text("in the way")
    dist.barrier()
    state = {"model.w": torch.zeros(4), f"own.{rank}": torch.zeros(2)}
    try:
        manifest = restore(run, state, verify=True, lineage=Lineage(Skips([[15, 17]])), **settings)  # type: ignore[arg-type]
    except CannotResume as error:
        return str(error)
    assert manifest is not None
    return manifest.step, [*state["model.w"].tolist(), *state[f"own.{rank}"].tolist()]


def test_ranks_go_back_together(tmp_path: Path) -> None:
    assert in_ranks(_rewind_together, 2, tmp_path, False) == [(10, [10.0] * 6)] * 2
    assert sorted(os.listdir(tmp_path / "checkpoints" / "abandoned" / "attempt-003")) == [
        "step-00000020",
        "step-00000030",
    ]
    events = [event for event in RunFolder(tmp_path).events() if event["event"] == "rewind"]
    assert len(events) == 1 and events[0]["attempt"] == 3


def test_no_rank_goes_on_where_one_can_not_move_them(tmp_path: Path) -> None:
    first, second = in_ranks(_rewind_together, 2, tmp_path, True)
    assert first == second and "newer checkpoints can't be moved aside" in str(first)


WSD, LR = ScheduleConfig(warmup_steps=2, decay_steps=20), OptimConfig(lr=1e-3)
SIXTY = Curve(WSD, LR, 60)
"""Decays over the steps 41 to 60."""


def longer(alone: Alone, curve: Curve) -> int | None:
    """Step that the run goes on from where its learning rate follows `curve` from now on."""
    state = state_of(0.0)
    manifest = restore(
        alone.run, state, identity=IDENTITY, verify=True, group=alone.group, reports=alone.reports, curve=curve
    )
    return None if manifest is None else manifest.step


def trained(alone: Alone, curve: Curve, *steps: int, keep: int | None = None) -> None:
    saver = alone.saver(curve=curve, keep=keep)
    for step in steps:
        saver.save(state_of(step), step, step * 100)


def test_manifests_record_the_learning_rate(alone: Alone) -> None:
    trained(alone, SIXTY, 1, 40, 50)
    manifests = [Manifest.read(folders.complete_path(alone.run.checkpoints_dir, step)) for step in (1, 40, 50)]
    assert [(found.lr, found.lr_share) for found in manifests] == [(5e-4, 0.5), (1e-3, 1.0), (5e-4, 0.5)]


def test_a_longer_run_goes_back_before_the_decay(alone: Alone, capsys: pytest.CaptureFixture[str]) -> None:
    trained(alone, SIXTY, 10, 20, 30, 40, 50, 60, keep=1)
    assert kept(alone) == [60, 40]
    assert longer(alone, SIXTY) == 60  # as the config was: nothing to say
    assert longer(alone, Curve(WSD, LR, 120)) == 40
    assert os.listdir(alone.run.checkpoints_dir / "abandoned" / "attempt-000") == ["step-00000060"]
    said = "train.steps=120 with schedule.decay_steps=20"
    assert f"went back from step 60 to step 40, since {said} changes what came after" in capsys.readouterr().out
    (event,) = [event for event in alone.run.events() if event["event"] == "rewind"]
    assert event["why"] == f"from step 60, for {said}"


@pytest.mark.parametrize("stopped", [46, 50, 60])
def test_a_decay_that_stopped_half_way_is_undone_as_well(alone: Alone, stopped: int) -> None:
    trained(alone, SIXTY, 40, stopped)
    assert longer(alone, Curve(WSD, LR, 120)) == 40


def test_without_one_before_the_decay_it_is_refused_and_what_is_said_can_be_typed(alone: Alone) -> None:
    trained(alone, SIXTY, 50, 60)
    with pytest.raises(CannotResume) as error:
        longer(alone, Curve(WSD, LR, 120))
    assert "from 0% of its peak at step 60, the newest checkpoint, to 100% at step 61" in str(error.value)
    assert "schedule.overrides=[{step: 61, lr: 0.001}]" in str(error.value)
    meant = ScheduleConfig(warmup_steps=2, decay_steps=20, overrides=[LrOverride(61, 1e-3)])
    assert longer(alone, Curve(meant, LR, 120)) == 60
    assert kept(alone) == [60, 50]


@pytest.mark.parametrize(
    ("now", "goes_on"),
    [
        (Curve(WSD, OptimConfig(lr=3e-3), 60), True),  # another peak is asked for in so many words
        (Curve(ScheduleConfig(warmup_steps=2, decay_steps=25), LR, 60), True),  # falls sooner
        (Curve(ScheduleConfig(warmup_steps=2, decay_steps=5), LR, 60), False),  # rises from a half
        (Curve(ScheduleConfig(warmup_steps=2, decay=Decay.constant), LR, 60), False),
        (Curve(WSD, LR, 64), True),  # to seven tenths: less than a fifth of the peak more
        (Curve(WSD, LR, 70), False),
    ],
)
def test_what_counts_as_undoing_a_decay(alone: Alone, now: Curve, goes_on: bool) -> None:
    trained(alone, SIXTY, 50)
    choice = choose(alone.run.checkpoints_dir, Lineage(), now)
    assert (choice.usable, choice.decayed) == (([50], []) if goes_on else ([], [50]))


def test_a_cosine_made_longer_early_goes_on_and_says_how_its_rate_changes(alone: Alone) -> None:
    cosine = ScheduleConfig(warmup_steps=2, decay=Decay.cosine, final_lr_ratio=0.1)
    trained(alone, Curve(cosine, LR, 60), 20)
    now = Curve(cosine, LR, 80)
    assert longer(alone, now) == 20
    note = new_rate(alone.run.checkpoints_dir, 20, now)
    assert note == "the learning rate's curve changes: 0.000803 at step 20, 0.000875 at step 21"
    assert new_rate(alone.run.checkpoints_dir, 20, Curve(cosine, LR, 60)) is None


def test_a_checkpoint_with_another_order_of_samples_is_refused(alone: Alone) -> None:
    identity = {**IDENTITY, "data.format": FORMAT - 1}
    saver = alone.saver(identity=identity)
    saver.save(state_of(10), 10, 1000)
    choice = choose(alone.run.checkpoints_dir, Lineage())
    problem = other_order(alone.run.checkpoints_dir, choice)
    assert problem is not None and f"in the order of format {FORMAT - 1}" in problem and "model.init_from" in problem
    with pytest.raises(CannotResume, match=f"this version draws them in format {FORMAT}"):
        restore(
            alone.run,
            state_of(0.0),
            identity={**IDENTITY, "data.format": FORMAT},
            verify=True,
            group=alone.group,
            reports=alone.reports,
        )
