import errno
import os
import resource
import threading
import zlib
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from harness.checkpoint import folders
from harness.checkpoint import manifest as manifest_module
from harness.checkpoint.manifest import Manifest
from harness.checkpoint.reports import Reports
from harness.checkpoint.restore import CannotResume, restore
from harness.checkpoint.save import Saver
from harness.checkpoint.state import training_state
from harness.config.schema import OptimConfig
from harness.observe.board import SAVE_STAGES, Board, board_path
from harness.optim.optimizer import build_optimizer
from harness.parallel.local import own_part
from harness.parallel.mesh import Grid
from harness.run.folder import RunFolder
from tests.checkpoint.conftest import IDENTITY, Alone, state_of
from tests.filling import full_disk
from tests.model.test_init import grid, own_part_of
from tests.ranks import in_ranks
from tests.tiny import tiny_model


def read(alone: Alone, verify: bool = True, **changed: object) -> tuple[Manifest | None, dict[str, torch.Tensor]]:
    state = state_of(0.0)
    identity = {**IDENTITY, **changed}
    manifest = restore(alone.run, state, identity=identity, verify=verify, group=alone.group, reports=alone.reports)
    return manifest, state


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("in_background", [False, True])
def test_saved_state_comes_back(in_background: bool, alone: Alone) -> None:
    saver = alone.saver(in_background=in_background)
    state = state_of(3.0)
    saver.save(state, 12, 345)
    for tensor in state.values():  # training goes on at once
        if in_background:
            tensor.fill_(-1.0)
    result = saver.wait()
    assert result is not None and result.error is None and result.size == result.own_size > 0
    manifest, found = read(alone)
    assert manifest is not None and (manifest.step, manifest.tokens, manifest.world_size) == (12, 345, 1)
    assert_same(found, state_of(3.0))
    assert alone.events() == [("checkpoint", 12)]
    assert alone.board.get("ckpt_last_success_step") == 12
    assert alone.board.get("ckpt_bytes_total") == result.size
    assert [sum(alone.board.histogram("save", row).counts) for row in range(len(SAVE_STAGES))] == [1, 1, 1]
    assert [sum(alone.board.histogram("restore", row).counts) for row in range(2)] == [1, 1]


def test_without_checkpoints_there_is_nothing_to_restore(alone: Alone) -> None:
    assert read(alone)[0] is None
    assert alone.events() == []


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


DAMAGES = {
    "flipped bit": lambda folder: damage(folder / "__0_0.distcp"),
    "truncated": lambda folder: os.truncate(folder / "__0_0.distcp", 100),
    "empty": lambda folder: os.truncate(folder / "__0_0.distcp", 0),
    "file gone": lambda folder: (folder / "__0_0.distcp").unlink(),
    "metadata gone": lambda folder: (folder / ".metadata").unlink(),
    "metadata flipped": lambda folder: damage(folder / ".metadata"),
    "manifest gone": lambda folder: (folder / "manifest.json").unlink(),
    "manifest cut": lambda folder: os.truncate(folder / "manifest.json", 50),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_corrupt_newest_is_passed_over_and_made_again(kind: str, alone: Alone) -> None:
    saver = alone.saver()
    for step in (1, 2):
        saver.save(state_of(step), step, step)
    DAMAGES[kind](folders.complete_path(alone.run.checkpoints_dir, 2))
    manifest, found = read(alone)
    assert manifest is not None and manifest.step == 1
    assert_same(found, state_of(1.0))
    assert alone.events()[-1] == ("checkpoint_corrupt", 2)
    saver.save(state_of(2.5), 2, 2)
    manifest, found = read(alone)
    assert manifest is not None and manifest.step == 2
    assert_same(found, state_of(2.5))


@pytest.mark.parametrize("name", ["read_json", "crc32"])
def test_a_mount_that_is_away_is_no_damage(name: str, alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rank fails and starts again; passing over the newest checkpoint would do its steps anew."""

    def stale(path: Path) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    saver = alone.saver()
    for step in (1, 2):
        saver.save(state_of(step), step, step)
    with monkeypatch.context() as patched:
        patched.setattr(manifest_module, name, stale)
        with pytest.raises(OSError, match="Stale file handle"):
            read(alone)
    assert ("checkpoint_corrupt", 2) not in alone.events()
    manifest, _ = read(alone)
    assert manifest is not None and manifest.step == 2


def test_sizes_are_checked_even_without_verification(alone: Alone) -> None:
    saver = alone.saver()
    for step in (1, 2):
        saver.save(state_of(step), step, step)
    DAMAGES["truncated"](folders.complete_path(alone.run.checkpoints_dir, 2))
    manifest, _ = read(alone, verify=False)
    assert manifest is not None and manifest.step == 1


def test_starting_over_is_refused_where_no_checkpoint_can_be_read(alone: Alone) -> None:
    alone.saver().save(state_of(1.0), 1, 1)
    DAMAGES["empty"](folders.complete_path(alone.run.checkpoints_dir, 1))
    with pytest.raises(CannotResume, match="none of the 1 checkpoints"):
        read(alone)


def test_checkpoint_of_another_run_is_refused_with_the_difference(alone: Alone) -> None:
    alone.saver().save(state_of(1.0), 1, 1)
    with pytest.raises(CannotResume, match=r"data\.seed: 1 in the checkpoint, 2 now"):
        read(alone, **{"data.seed": 2})


def test_older_ones_go_only_after_a_newer_one_is_complete(alone: Alone) -> None:
    saver = alone.saver(keep=2)
    for step in (1, 2, 3):
        saver.save(state_of(step), step, step)
    assert folders.complete_steps(alone.run.checkpoints_dir) == [3, 2]


@pytest.mark.parametrize("in_background", [False, True])
def test_a_full_disk_leaves_the_older_checkpoint_and_no_half_one(in_background: bool, alone: Alone) -> None:
    saver = alone.saver(keep=1, in_background=in_background)
    saver.save(state_of(1.0), 1, 1)
    saver.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        saver.save(state_of(2.0), 2, 2)
        result = saver.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result is not None and result.error is not None and "File too large" in result.error
    assert alone.board.get("ckpt_failures_total") == 1
    failure = alone.run.events()[-1]
    assert failure["event"] == "checkpoint_failed" and "File too large" in failure["reason"]
    assert sorted(path.name for path in alone.run.checkpoints_dir.iterdir()) == ["latest", "step-00000001"]
    saver.save(state_of(3.0), 3, 3)
    saver.wait()
    assert folders.complete_steps(alone.run.checkpoints_dir) == [3]


def test_disks_that_are_full_or_read_only_leave_nothing_half_written(alone: Alone) -> None:
    saver = alone.saver(keep=1)
    with full_disk(alone.run.checkpoints_dir, kilobytes=64) as disk:
        saver.save(state_of(1.0), 1, 1)
        disk.fill()
        saver.save(state_of(2.0), 2, 2)
        disk.free()
        disk.make_read_only()
        saver.save(state_of(3.0), 3, 3)
        disk.make_writable()
        assert sorted(path.name for path in disk.folder.iterdir()) == ["latest", "step-00000001"]
        reasons = [event["reason"] for event in alone.run.events() if event["event"] == "checkpoint_failed"]
        assert ["No space left" in reasons[0], "Read-only" in reasons[1]] == [True, True]
        saver.save(state_of(4.0), 4, 4)
        assert folders.complete_steps(disk.folder) == [4]


@pytest.mark.parametrize("what", ["prune", "point_latest"])
def test_a_checkpoint_is_complete_though_nothing_can_be_tidied_up(
    what: str, alone: Alone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    saver = alone.saver(keep=1)
    with monkeypatch.context() as patched:
        patched.setattr(folders, what, full)
        saver.save(state_of(1.0), 1, 1)
    assert alone.events() == [("checkpoint", 1)]
    assert "checkpoint of step 1 is complete, but" in capsys.readouterr().out
    assert read(alone)[0] is not None
    saver.save(state_of(2.0), 2, 2)  # and the next one makes up for it
    assert sorted(path.name for path in alone.run.checkpoints_dir.iterdir()) == ["latest", "step-00000002"]
    assert (alone.run.checkpoints_dir / "latest").read_text() == "step-00000002\n"


def test_a_listing_that_fails_fails_the_save_and_not_the_run(alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it nobody knows whether a newer attempt writes here."""

    def stale(run: RunFolder) -> int | None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    saver = alone.saver()
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "newest_attempt", stale)
        saver.save(state_of(1.0), 1, 1)
    result = saver.wait()
    assert result is not None and result.error is not None and "Stale file handle" in result.error
    assert list(alone.run.checkpoints_dir.iterdir()) == []


def test_a_run_folder_that_has_gone_is_not_made_anew(alone: Alone) -> None:
    """Its mount has: what is written there would lie on the disk below, and be hidden when the mount is back."""
    aside = alone.run.path.with_name("aside")
    alone.run.path.rename(aside)
    saver = alone.saver()
    saver.save(state_of(1.0), 1, 1)
    assert not alone.run.path.exists()
    aside.rename(alone.run.path)
    saver.save(state_of(2.0), 2, 2)
    assert [name for name, _ in alone.events()] == ["checkpoint_failed", "checkpoint"]


@pytest.mark.parametrize(("in_background", "shows"), [(False, True), (True, False)])
def test_a_save_shows_progress_only_if_training_waits_for_it(in_background: bool, shows: bool, alone: Alone) -> None:
    """Otherwise a save in the background would hide that training hangs."""
    saver = alone.saver(in_background=in_background)
    alone.board.set("progress_time", 1.0)
    saver.save(state_of(1.0), 1, 1)
    while saver._thread is not None and saver._thread.is_alive():
        pass
    assert (alone.board.get("progress_time") > 1.0) == shows
    saver.wait()


def test_an_older_attempt_is_fenced_off(alone: Alone) -> None:
    for attempt in (3, 4):
        alone.run.attempt_dir(attempt).mkdir()
    saver = alone.saver(attempt=3)
    saver.save(state_of(1.0), 1, 1)
    result = saver.wait()
    assert result is not None and result.fenced
    assert list(alone.run.checkpoints_dir.iterdir()) == []
    alone.saver(attempt=4).save(state_of(1.0), 1, 1)
    assert folders.complete_steps(alone.run.checkpoints_dir) == [1]


def test_only_one_save_is_under_way_at_a_time(alone: Alone) -> None:
    saver = alone.saver(in_background=True)
    for step in range(1, 4):
        saver.save(state_of(step), step, step)
        assert sum(thread.name.startswith("save-") for thread in threading.enumerate()) <= 1
    saver.wait()
    assert alone.events() == [("checkpoint", 1), ("checkpoint", 2), ("checkpoint", 3)]


def _filled(grid: Grid, rank: int) -> dict[str, torch.Tensor]:
    """This rank's state in a layout, with values that follow from the tensors' names alone."""
    stages = own_part_of(tiny_model(), grid, rank, 1)
    parameters = {name: parameter for stage in stages for name, parameter in stage.weights().items()}
    state = training_state(parameters, build_optimizer(parameters, OptimConfig()).state)
    for name, tensor in state.items():
        seed = zlib.crc32(name.encode()) if tensor.ndim else 0  # the number of steps is one tensor for all parameters
        full = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))
        _local(tensor).copy_(full[own_part(tensor)])
    return state


def _save_then_load_elsewhere(
    rank: int, world_size: int, folder: Path, layouts: list[Grid], in_background: bool
) -> int:
    """Save in the first layout and read in all; bytes that this rank wrote."""
    run = RunFolder(folder)
    group = dist.new_group(backend="gloo")
    reports = Reports(Board.open_for_write(board_path(folder / "boards", rank)), run.ledger(0), rank)
    saver = Saver(run, attempt=0, group=group, identity={}, keep=1, in_background=in_background, reports=reports)
    saver.save(_filled(layouts[0], rank), 1, 1)
    result = saver.wait()
    assert result is not None and result.error is None
    for layout in layouts:
        expected, restored = _filled(layout, rank), _filled(layout, rank)
        for tensor in restored.values():
            _local(tensor).zero_()
        manifest = restore(run, restored, identity={}, verify=True, group=group, reports=reports)
        assert manifest is not None and manifest.world_size == world_size
        for name, tensor in expected.items():
            assert torch.equal(_local(restored[name]), _local(tensor)), name
    return result.own_size


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@pytest.mark.parametrize(
    ("first", "in_background"),
    [(grid(dp_shard=2, tp=2), False), (grid(dp_replicate=2, dp_shard=2), True), (grid(pp=2, dp_shard=2), False)],
)
def test_any_layout_reads_what_any_other_wrote(first: Grid, in_background: bool, tmp_path: Path) -> None:
    others = [grid(dp_shard=4), grid(dp_replicate=2, tp=2), grid(pp=2, tp=2)]
    sizes = in_ranks(_save_then_load_elsewhere, 4, tmp_path, [first, *others], in_background)
    assert min(sizes) > 0  # every rank writes a share
