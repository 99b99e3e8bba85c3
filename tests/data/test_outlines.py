"""Sources in an object store, known by their outlines: a launch and its checks need no copy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from harness.config.schema import DataConfig, Packing, SourceConfig, StageConfig
from harness.data import origins
from harness.data.check import check_sources, resolve_eos
from harness.data.errors import DataError
from harness.data.loader import Loader
from harness.data.order import SampleOrder, open_order
from harness.data.packing import PackedOutline, PackedWindows
from harness.data.read_settings import ReadSettings
from harness.data.stage import Stager
from harness.data.stage_plan import plan_files
from harness.data.token_files import inspect_source, open_source
from tests.data.conftest import write_token_file
from tests.data.staging import SEQ_LEN, write_manifest
from tests.data.test_tokenizer_files import write_tokenizer

VOCAB = 256


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three files of documents of many lengths, with the tokenizer that `prepare` leaves beside them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    draw, folder = np.random.default_rng(0), tmp_path / "web"
    for number in range(3):
        documents = [[*draw.integers(1, 200, length).tolist(), 0] for length in draw.integers(2, 40, 60)]
        write_token_file(folder, documents, f"{number:03d}.ds", tokenizer="tokenizer/tokenizer.json")
    write_tokenizer(folder / "tokenizer", {"</s>": 0, "a": 200}, tokenizer_config={"eos_token": "</s>"})
    write_manifest(folder, ["tokenizer/tokenizer.json"])
    return folder


def config(path: Path | str, scratch: Path, **settings: Any) -> DataConfig:
    return DataConfig(
        sources={"web": SourceConfig(path=str(path))},
        stages=[StageConfig(weights={"web": 1.0})],
        seq_len=SEQ_LEN,
        stage_to=str(scratch),
        packing_cache=str(scratch.parent / "packing"),
        **settings,
    )


def stage(data: DataConfig) -> None:
    assert data.stage_to is not None
    files = plan_files(data, data.stage_to)
    assert Stager(files, Path(data.stage_to), Path(data.stage_to) / "status").run().ready


def batches(data: DataConfig, order: SampleOrder, steps: int = 4) -> list[tuple[np.ndarray, ...]]:
    """All that the first steps feed to a model."""
    with Loader(
        order.sources, order, global_batch_size=8, micro_batch_size=4, dp_rank=0, dp_size=1, start_step=0,
        seq_len=SEQ_LEN, eos_token_id=resolve_eos(data, order.sources), document_mask=True,
        reading=ReadSettings.of(data, data.sources),
    ) as loader:  # fmt: skip
        return [
            tuple(array.copy() for array in (m.input_ids, m.labels, m.position_ids))  # the loader uses its memory again
            for batch in (next(loader) for _ in range(steps))
            for m in batch.micro_batches
        ]


@pytest.mark.parametrize("packing", list(Packing))
def test_a_folder_its_outline_and_its_copies_are_one_run(web: Path, tmp_path: Path, packing: Packing) -> None:
    """What the launcher plans from outlines is what ranks read from copies, and from the folder itself, bit by bit."""
    data = config(f"file://{web}", tmp_path / "scratch", packing=packing)
    outline = open_order(data, 8, outlines=True)
    assert not (tmp_path / "scratch").exists() and sorted(path.name for path in web.glob("best_fit*")) == []
    stage(data)
    copies = open_order(data, 8)
    mounted = config(web, tmp_path / "unused", packing=packing)
    original = open_order(mounted, 8)
    assert original.definition() == outline.definition() == copies.definition()
    indices = np.arange(300)
    for order in (outline, copies):
        for ours, theirs in zip(order.samples(indices), original.samples(indices), strict=True):
            assert np.array_equal(ours, theirs)
        assert order.windows[0].wasted == original.windows[0].wasted
    assert all(file.path.is_relative_to(tmp_path / "scratch") for file in copies.sources[0].files)
    read, expected = batches(data, copies), batches(mounted, original)
    assert len(read) == 8
    for one, other in zip(read, expected, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_missing_copies_are_told_by_the_url_that_was_typed(web: Path, tmp_path: Path) -> None:
    url, scratch = f"file://{web}", tmp_path / "scratch"
    with pytest.raises(DataError) as error:
        open_order(config(url, scratch), 8)
    assert str(error.value).startswith(
        f"data.sources.web.path={url}: has no copies in data.stage_to={scratch} on this machine ("
    )
    assert "run python -m harness.data stage with the same overrides" in str(error.value)


def test_copies_go_by_the_url_in_messages(web: Path, tmp_path: Path) -> None:
    data = config(f"file://{web}", tmp_path / "scratch")
    stage(data)
    source = open_order(data, 8).sources[0]
    assert source.key == f"data.sources.web.path=file://{web}"
    (source.path / "001.ds").write_bytes(b"cut")
    with pytest.raises(DataError, match=rf"data\.sources\.web\.path=file://{web}: 001\.ds has 3 bytes"):
        open_order(data, 8)


@pytest.mark.parametrize("name", ["", "/001.ds"])
def test_copies_that_are_lost_are_read_from_the_store(bucket: str, tmp_path: Path, name: str) -> None:
    data = config(bucket + name, tmp_path / "scratch")
    stage(data)
    order = open_order(data, 8)
    expected = batches(data, order)
    for file in order.sources[0].files:
        file.path.unlink()
    for one, other in zip(batches(data, order), expected, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_one_token_file_of_a_store(web: Path, tmp_path: Path) -> None:
    data = config(f"file://{web}/001.ds", tmp_path / "scratch")
    outline = open_order(data, 8, outlines=True)
    stage(data)
    assert [file.path.name for file in outline.sources[0].files] == ["001.ds"]
    assert outline.definition() == open_order(data, 8).definition()
    assert inspect_source("web", f"file://{web}/009.ds")[1][0].startswith(
        f"data.sources.web.path=file://{web}/009.ds holds no"
    )


def test_sound_data_in_a_store_has_no_problems(web: Path, tmp_path: Path) -> None:
    data = config(f"file://{web}", tmp_path / "scratch")
    assert check_sources(data, VOCAB) == []
    assert resolve_eos(data, [open_source("web", f"file://{web}")]) == 0


def test_whatever_is_wrong_in_a_store_is_found_without_a_copy(web: Path, tmp_path: Path) -> None:
    data, url = config(f"file://{web}", tmp_path / "scratch"), f"data.sources.web.path=file://{web}"
    assert any(problem.startswith(f"{url}: 000.ds holds token 199, but") for problem in check_sources(data, 199))
    (problem,) = [problem for problem in check_sources(data, 200) if "tokenizer" in problem]
    assert problem.endswith("has 201 tokens. Set model.vocab_size=201 or more.")
    (problem,) = check_sources(config(f"file://{web}", tmp_path / "scratch", eos_token_id=5), VOCAB)
    assert f"data.eos_token_id=5: no document looked at in {url} ends with it (they end with 0)" in problem
    (web / "001.ds.index").write_bytes((5).to_bytes(8, "little"))
    with (web / "002.ds").open("ab") as file:
        file.write(b"x")
    problems = check_sources(data, VOCAB)
    assert [problem.partition(" has ")[0].partition(" holds ")[0] for problem in problems] == [
        f"{url}: 001.ds",
        f"{url}: 002.ds",
    ]
    (missing,) = check_sources(config(f"file://{tmp_path}/none", tmp_path / "scratch"), VOCAB)
    assert missing.startswith(f"data.sources.web.path=file://{tmp_path}/none cannot be read: ")
    assert not (tmp_path / "scratch").exists()


def test_a_new_tokenizer_in_the_store_is_brought_again(web: Path) -> None:
    url = f"file://{web}"
    assert resolve_eos(DataConfig(), [open_source("web", url)]) == 0
    write_tokenizer(web / "tokenizer", {"</s>": 77, "a": 200}, tokenizer_config={"eos_token": "</s>"})
    assert resolve_eos(DataConfig(), [open_source("web", url)]) == 77


@pytest.fixture
def bucket(web: Path) -> Iterator[str]:
    """The same files, and a large one, in fsspec's store in memory."""
    store = fsspec.filesystem("memory")
    store.put(str(web), "/bucket/web", recursive=True)
    large = np.zeros(1 << 22, "<u2")
    store.pipe({
        "/bucket/web/large.ds": large.tobytes(),
        "/bucket/web/large.ds.index": np.arange(16, len(large) + 1, 16).astype("<u8").tobytes(),
        "/bucket/web/large.ds.metadata": f"tokenizer/tokenizer.json|2\n{len(large)}\n4 M".encode(),
    })  # fmt: skip
    origins._kept.clear()
    yield "memory://bucket/web"
    store.rm("/bucket", recursive=True)


def test_an_outline_costs_small_reads_and_those_only_once(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, read = config(bucket, tmp_path / "scratch"), []
    original = MemoryFileSystem.cat_file

    def cat_file(
        store: MemoryFileSystem, path: str, start: int | None = None, end: int | None = None, **more: Any
    ) -> bytes:
        assert start is not None and end is not None
        read.append(end - start)
        return bytes(original(store, path, start=start, end=end, **more))

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    first = open_order(data, 8, outlines=True)
    assert len(first.sources[0].files) == 4 and first.sources[0].tokens > 1 << 22
    assert len(read) == 8 and sum(read) < 1000  # metadata and the end of the index, of each file
    assert open_order(data, 8, outlines=True).definition() == first.definition()
    assert len(read) == 8
    assert check_sources(data, VOCAB) == []
    assert sum(read) < 1 << 21


def test_what_a_store_raises_is_told_with_the_file(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries of object stores have errors of their own, which are no OSErrors."""

    def cat_file(*arguments: Any, **more: Any) -> bytes:
        raise RuntimeError("token expired")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    problems = check_sources(config(bucket, tmp_path / "scratch"), VOCAB)
    assert problems[0] == f"data.sources.web.path={bucket}: 000.ds cannot be read: RuntimeError: token expired"


def test_a_table_in_the_store_is_used_and_staged(web: Path, tmp_path: Path) -> None:
    """Packed where the files were mounted; who reads them by URL, and who reads copies, packs nothing again."""
    original = open_order(config(web, tmp_path / "unused", packing=Packing.best_fit), 8)
    (table,) = web.glob("best_fit-*")
    data = config(f"file://{web}", tmp_path / "scratch", packing=Packing.best_fit)
    outline = open_order(data, 8, build=False, outlines=True)
    assert isinstance(outline.windows[0], PackedOutline)
    with pytest.raises(
        DataError, match=rf"data\.sources\.web\.path=file://{web}: its packing table is in the object store"
    ):
        outline.windows[0].pieces(0)
    stage(data)
    copies = open_order(data, 8, build=False)
    (copy,) = (tmp_path / "scratch").glob(f"web-*/{table.name}")
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == {
        path.name: path.read_bytes() for path in table.iterdir()
    }
    assert copies.definition() == outline.definition() == original.definition()
    assert isinstance(open_order(data, 8, build=False, outlines=True).windows[0], PackedWindows)  # the copy will do
    assert not (tmp_path / "packing").exists()


def test_a_damaged_table_in_the_store(web: Path, tmp_path: Path) -> None:
    open_order(config(web, tmp_path / "unused", packing=Packing.best_fit), 8)
    (table,) = web.glob("best_fit-*")
    (table / "packing.json").write_text("{")
    data = config(f"file://{web}", tmp_path / "scratch", packing=Packing.best_fit)
    with pytest.raises(DataError, match=rf"{table.name}/packing\.json can't be read: .*it is made again"):
        open_order(data, 8, outlines=True)


def test_where_the_store_has_no_table_it_is_made_in_the_cache_and_staged_from_there(web: Path, tmp_path: Path) -> None:
    data = config(f"file://{web}", tmp_path / "scratch", packing=Packing.best_fit)
    outline = open_order(data, 8, outlines=True)
    (table,) = (tmp_path / "packing").glob("best_fit-*")
    assert not (tmp_path / "scratch").exists()
    stage(data)
    made = table.with_name("gone")
    table.rename(made)
    assert open_order(data, 8, build=False).definition() == outline.definition()
    made.rename(table)
    for copy in (tmp_path / "scratch").glob("web-*/best_fit-*/*"):
        copy.unlink()
    assert open_order(data, 8, build=False).definition() == outline.definition()  # the cache will do
    for name in ("packing.json", "windows.bin", "pieces.bin"):
        (table / name).unlink()
    table.rmdir()
    open_order(data, 8)
    assert (table / "packing.json").exists()  # one for all nodes, rather than one on each


@pytest.mark.parametrize("beside", [True, False])
def test_a_mounted_source_brings_its_table_along(web: Path, tmp_path: Path, beside: bool) -> None:
    """Else every step would look at shared storage, which may be cold, for where its documents are."""
    data = config(web, tmp_path / "scratch", packing=Packing.best_fit)
    original = open_order(data, 8)
    (table,) = web.glob("best_fit-*")
    if not beside:
        (tmp_path / "packing").mkdir()
        table = table.rename(tmp_path / "packing" / table.name)
    stage(data)
    (copy,) = (tmp_path / "scratch").glob(f"web-*/{table.name}")
    kept = {path: path.read_bytes() for path in table.iterdir()}
    for path in kept:
        path.unlink()
    assert open_order(data, 8, build=False).definition() == original.definition()
    (copy / "pieces.bin").unlink()  # the copy is not whole: the original is read
    for path, content in kept.items():
        path.write_bytes(content)
    assert open_order(data, 8, build=False).definition() == original.definition()
