"""`python -m harness.data show`: the batch of a step, as the run sees it."""

import json
from pathlib import Path

import numpy as np
import pytest

from harness.config.schema import MixtureChange, Packing, RootConfig, SourceConfig, StageConfig
from harness.data.__main__ import main
from harness.data.loader import Loader
from harness.data.order import open_order
from harness.data.show import as_json, render, show
from harness.data.skips import Skips
from harness.run.folder import RunFolder
from tests.data.conftest import write_token_file
from tests.tiny import END, tiny_run


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """8 steps of 8 samples of 64 tokens."""
    return tiny_run(tmp_path)


def edit(run: RunFolder, **changes: object) -> RootConfig:
    config = run.load_config()
    for key, value in changes.items():
        section, field = key.split("__")
        setattr(getattr(config, section), field, value)
    run.save_config(config)
    return config


def read_by_loaders(config: RootConfig, step: int, dp: int = 1) -> dict[int, tuple[int, list[int]]]:
    """Sample -> (rank, input ids) of the step, as training reads them."""
    order, found = open_order(config.data, config.train.global_batch_size), {}
    for rank in range(dp):
        with Loader(
            order.sources, order, global_batch_size=8, micro_batch_size=2, dp_rank=rank, dp_size=dp, start_step=step - 1,
            seq_len=64, eos_token_id=END, document_mask=True, skips=Skips(config.train.skip),
        ) as loader:  # fmt: skip
            batch = next(loader)
        rows = np.concatenate([micro.input_ids for micro in batch.micro_batches])
        found |= {int(index): (rank, row.tolist()) for index, row in zip(batch.samples, rows, strict=True)}
    return found


def shown(run: RunFolder, step: int, **options: object) -> dict[int, list[int]]:
    """Sample -> all ids that are shown."""
    batch = show(str(run.path), Path("runs"), step, most=-1, **options)  # type: ignore[arg-type]
    return {
        sample.sample: [
            token for place in sample.places for passage in place.passages for token in passage.ids
        ]
        for sample in batch.samples
    }  # fmt: skip


@pytest.mark.parametrize("packing", list(Packing))
def test_is_what_the_loader_reads_with_skips_and_changes(run: RunFolder, packing: Packing, tmp_path: Path) -> None:
    write_token_file(tmp_path / "more", [[5] * 30 + [END]] * 40)
    config = edit(
        run,
        data__packing=packing,
        train__skip=[[2, 4]],
        data__sources={
            "web": SourceConfig(path=str(tmp_path / "tokens")),
            "more": SourceConfig(path=str(tmp_path / "more")),
        },
        data__change_at=[MixtureChange(7, [StageConfig("mixed", None, {"web": 0.5, "more": 0.5})])],
    )
    for step in (1, 2, 5):
        read = read_by_loaders(config, step)
        found = shown(run, step)
        assert sorted(found) == sorted(read)
        assert all(ids[:64] == read[sample][1][: len(ids[:64])] for sample, ids in found.items())
    batch = show(str(run.path), Path("runs"), 5)
    assert (batch.batch, batch.stage) == (8, "data.change_at[0].stages[0] (mixed)")
    assert set(batch.sources) == {"web", "more"} and sum(batch.sources.values()) == 8 == batch.size
    assert "step 5 of" in render(batch) and "trains on batch 8, since train.skip leaves some out" in render(batch)


@pytest.mark.parametrize("packing", list(Packing))
def test_a_run_from_an_object_store_is_shown_without_copies(run: RunFolder, packing: Packing, tmp_path: Path) -> None:
    edit(run, data__packing=packing, data__packing_cache=str(tmp_path / "packing"))
    read_by_loaders(run.load_config(), 1)
    mounted = show(str(run.path), Path("runs"), 2, most=-1)
    for table in (tmp_path / "tokens").glob("best_fit-*"):  # as the launch from the store has made it
        (tmp_path / "packing").mkdir()
        table.rename(tmp_path / "packing" / table.name)
    url = f"file://{tmp_path}/tokens"
    edit(run, data__sources={"web": SourceConfig(path=url)}, data__stage_to=str(tmp_path / "scratch"))
    shown = show(str(run.path), Path("runs"), 2, most=-1)
    assert as_json(shown).replace(url, str(tmp_path / "tokens")) == as_json(mounted)
    assert shown.samples[0].places[0].file == f"{url}/000.ds"
    assert not (tmp_path / "scratch").exists()


def test_one_rank_sees_its_part(run: RunFolder) -> None:
    edit(run, cluster__ranks_per_node=2)
    config = run.load_config()
    read = read_by_loaders(config, 3, dp=2)
    for rank in (0, 1):
        batch = show(str(run.path), Path("runs"), 3, rank=rank, most=-1)
        assert {sample.sample for sample in batch.samples} == {index for index, (own, _) in read.items() if own == rank}
        assert {sample.rank for sample in batch.samples} == {rank} and batch.size == 4
    places = [(sample.micro_batch, sample.row) for sample in batch.samples]
    assert places == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_documents_are_numbered_as_in_the_file(run: RunFolder, tmp_path: Path) -> None:
    tokens = np.fromfile(tmp_path / "tokens" / "000.ds", "<u2")
    ends = np.fromfile(tmp_path / "tokens" / "000.ds.index", "<u8").astype(int)
    for sample in show(str(run.path), Path("runs"), 2, most=-1).samples:
        (place,) = sample.places
        at = place.first_token
        for passage in place.passages:
            assert passage.document is not None and passage.offset is not None
            begin = ends[passage.document - 1] if passage.document else 0
            assert at == begin + passage.offset and passage.ids == tokens[at : at + passage.tokens].tolist()
            assert passage.whole == (passage.tokens == ends[passage.document] - begin)
            at += passage.tokens
        assert at == place.first_token + 65 == place.first_token + place.tokens


def test_text_where_the_tokenizer_is_here(run: RunFolder, prepared: Path) -> None:
    edit(run, data__sources={"web": SourceConfig(path=str(prepared))}, data__eos_token_id=None)
    batch = show(str(run.path), Path("runs"), 1, most=1)
    text = "".join(passage.text or "" for place in batch.samples[0].places for passage in place.passages)
    written = " ".join(path.read_text() for path in (prepared.parent / "text").glob("*.txt"))
    assert text.replace("<|endoftext|>", "")[:40] in written
    assert "tokenizer not on this machine" not in render(batch)


def test_ids_where_it_is_not_and_no_documents_without_an_index(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "tokens" / "000.ds.index").unlink()
    text = render(show(str(run.path), Path("runs"), 1, most=1))
    assert "65 tokens (no index beside the file: documents are not known) (tokenizer not on this machine: ids)" in text
    assert "7 more samples: --samples -1 prints all" in text


def test_padding_is_told(run: RunFolder) -> None:
    config = edit(run, data__packing=Packing.best_fit)
    order = open_order(config.data, 8)
    batch = show(str(run.path), Path("runs"), 4, most=-1)
    assert batch.targets == order.windows[0].targets(order.samples(np.arange(24, 32))[1])
    assert batch.padding == 1 - batch.targets / 512 > 0
    assert f"{batch.targets} tokens are predicted in the whole batch; {batch.padding:.2%} of it is padding" in render(
        batch
    )
    assert sum(sample.padding for sample in batch.samples) == 8 * 65 - batch.targets - 8
    assert batch.wasted == {"web": order.windows[0].wasted}


def test_command_line(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["show", run.name, "--runs-dir", str(run.path.parent), "--step", "3"]
    assert main([*asked, "--samples", "2"]) == 0
    assert capsys.readouterr().out == render(show(str(run.path), Path("runs"), 3, most=2)) + "\n"
    assert main([*asked, "--json", "--samples", "-1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(as_json(show(str(run.path), Path("runs"), 3, most=-1)))
    assert len(printed["samples"]) == 8 and printed["samples"][0]["places"][0]["passages"][0]["ids"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--step", "1"], "error: nothing: runs/nothing is not a run folder"),
        (["RUN", "--step", "0"], "error: --step 0: the run run has the steps 1 to train.steps=8"),
        (["RUN", "--step", "9"], "error: --step 9: the run run has the steps 1 to train.steps=8"),
        (["RUN", "--step", "1", "--rank", "1"], "error: --rank 1: the run has 1 data-parallel ranks, 0 to 0"),
        (["RUN", "--step", "1", "--samples", "-2"], "error: --samples -2: give a number of samples"),
    ],
)
def test_bad_input(run: RunFolder, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(run.path) if argument == "RUN" else argument for argument in arguments]
    assert main(["show", *given]) == 2
    assert message in capsys.readouterr().err


def test_data_that_is_gone(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tokens").rename(tmp_path / "moved")
    assert main(["show", str(run.path), "--step", "1"]) == 2
    assert "data.sources.web.path=" in capsys.readouterr().err
