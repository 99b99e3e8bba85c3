"""Tables of packed windows: right, made once whatever dies, found where they can be, and read by the loader."""

import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import harness.data.packing as packing_module
from harness.config.schema import DataConfig, Packing, SourceConfig, StageConfig
from harness.data.errors import DataError
from harness.data.loader import NO_TARGET, Loader
from harness.data.order import open_order
from harness.data.packing import PackedWindows, PackingMissing, cut
from harness.data.token_files import TokenSource, open_source
from tests.data.conftest import data_config, write_token_file

SEQ_LEN = 16
END = 1


def documents(count: int, seed: int, shortest: int = 0, longest: int = 40) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [[*draw.integers(2, 999, draw.integers(shortest, longest)).tolist(), END] for _ in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of documents."""
    for number in range(2):
        write_token_file(tmp_path / "web", documents(60, number), f"{number:03d}.ds")
    return tmp_path / "web"


def settings(folder: Path, **changes: object) -> DataConfig:
    chosen = {"seq_len": SEQ_LEN, "packing": Packing.best_fit, "packing_cache": str(folder.parent / "cache"), **changes}
    return data_config({"web": folder}, **chosen)


def packed(folder: Path, **changes: object) -> PackedWindows:
    found = cut(open_source("web", folder), settings(folder, **changes))
    assert isinstance(found, PackedWindows)
    return found


def tokens_of(windows: PackedWindows, window: int) -> list[list[int]]:
    """The tokens of each piece, straight from the files."""
    found = []
    for piece in windows.pieces(window):
        tokens = np.fromfile(windows.source.files[piece.file].path, "<u2")
        found.append(tokens[piece.offset // 2 :][: piece.tokens].tolist())
    return found


def test_every_document_that_fits_is_whole_and_once_in_a_window(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packing_module, "GROUP_DOCUMENTS", 25)  # so that a file takes several groups
    windows = packed(folder)
    assert "packing web" in capfd.readouterr().err
    pieces = [piece for window in range(windows.count) for piece in tokens_of(windows, window)]
    texts = [text for number in range(2) for text in documents(60, number)]
    short = [text for text in texts if 4 < len(text) <= SEQ_LEN + 1]  # shorter ones may equal what is left of long ones
    assert len(short) > 20 and all(pieces.count(text) == short.count(text) for text in short)
    predicted = sum(len(piece) - 1 for piece in pieces)
    assert predicted == sum(len(text) - 1 for text in texts), (
        "each token but a document's first, once, inside documents"
    )
    for window in range(windows.count):
        assert sum(map(len, tokens_of(windows, window))) <= SEQ_LEN + 1
    used = sum(map(len, pieces))
    assert windows.wasted == pytest.approx(1 - used / (windows.count * (SEQ_LEN + 1)))
    everything = np.arange(windows.count)
    assert windows.targets(everything) == used - windows.count
    assert windows.targets(everything[3:5]) == sum(len(text) for n in (3, 4) for text in tokens_of(windows, n)) - 2
    with pytest.raises(IndexError, match=f"window {windows.count} of {windows.count} in source web"):
        windows.pieces(windows.count)


def test_the_loader_fills_up_with_what_does_not_train(folder: Path) -> None:
    for number, length in enumerate((6, 10)):  # two and one of them in a window
        write_token_file(folder, documents(60, number, shortest=length, longest=length + 1), f"{number:03d}.ds")
    order = open_order(settings(folder), 8)
    (windows,) = order.windows
    with Loader(
        order.sources, order, global_batch_size=8, micro_batch_size=2, dp_rank=1, dp_size=2, start_step=0, stop_step=20,
        seq_len=SEQ_LEN, eos_token_id=END, document_mask=True,
    ) as loader:  # fmt: skip
        batches = list(loader)
    fillings = 0
    for batch in batches:
        labels = np.concatenate([micro.labels for micro in batch.micro_batches])
        assert windows.targets(batch.windows) == (labels != NO_TARGET).sum()
        rows = [
            row
            for micro in batch.micro_batches
            for row in zip(micro.input_ids, micro.labels, micro.position_ids, strict=True)
        ]
        for window, (inputs, labels, places) in zip(batch.windows, rows, strict=True):
            texts = tokens_of(windows, int(window))  # type: ignore[arg-type]
            tokens = [token for text in texts for token in text]
            used = min(len(tokens), SEQ_LEN)
            assert inputs[:used].tolist() == tokens[:used] and labels[: len(tokens) - 1].tolist() == tokens[1:]
            assert (labels[len(tokens) - 1 :] == NO_TARGET).all()
            expected = [place for text in texts for place in range(len(text))][:SEQ_LEN]
            filling = SEQ_LEN - used  # one document of its own
            assert places.tolist() == [*expected, *range(filling)]
            assert END not in inputs[used:]
            fillings += filling
    assert fillings > 100


def test_documents_without_an_end_token_are_kept_apart_all_the_same(tmp_path: Path) -> None:
    texts = [[7, 8, 9], [10, 11], [12, 13, 14, 15]]
    write_token_file(tmp_path / "web", texts)
    order = open_order(settings(tmp_path / "web"), 1)
    with Loader(
        order.sources, order, global_batch_size=1, micro_batch_size=1, dp_rank=0, dp_size=1, start_step=0, stop_step=1,
        seq_len=SEQ_LEN, eos_token_id=END, document_mask=True,
    ) as loader:  # fmt: skip
        (micro,) = next(loader).micro_batches
    assert micro.position_ids[0].tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3, *range(SEQ_LEN - 9)]


def test_made_once_and_found_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = packed(folder)
    (table,) = folder.glob("best_fit-16-*")
    monkeypatch.setattr(packing_module, "_build", None)
    again = packed(folder)
    assert again.facts == first.facts and not list(folder.glob(".*"))
    moved = folder.with_name("moved")
    shutil.copytree(folder, moved)
    assert packed(moved).facts == first.facts, "where it lies does not matter"
    (moved / table.name / "pieces.bin").write_bytes(b"short")
    with pytest.raises(DataError, match=r"pieces.bin has 5 bytes instead of \d+\. Remove .*, and it is made again"):
        packed(moved)


def test_other_lengths_and_files_have_tables_of_their_own(folder: Path) -> None:
    digests = {packed(folder).facts["digest"], packed(folder, seq_len=24).facts["digest"]}
    write_token_file(folder, documents(60, 5), "000.ds")
    digests.add(packed(folder).facts["digest"])
    write_token_file(folder, documents(60, 5)[::-1], "000.ds")  # as many tokens and documents, in another order
    digests.add(packed(folder).facts["digest"])
    assert len(digests) == 4 == len(list(folder.glob("best_fit-*")))


def test_goes_into_the_cache_where_the_folder_can_not_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = os.open

    def read_only(path: str, *arguments: int, **more: int) -> int:
        if Path(path).parent == folder and arguments[0] & os.O_CREAT:
            raise PermissionError(13, "Read-only file system")
        return make(path, *arguments, **more)

    monkeypatch.setattr(packing_module.os, "open", read_only)
    packed(folder)
    assert not list(folder.glob("*best_fit*")) and len(list((folder.parent / "cache").glob("best_fit-*"))) == 1
    shutil.rmtree(folder.parent / "cache")
    (folder.parent / "cache").touch()
    with pytest.raises(
        DataError, match=r"no place for its table \(.*Read-only.*\)\. Set data\.packing_cache to a folder"
    ):
        packed(folder)


def test_is_not_made_by_who_only_looks(folder: Path) -> None:
    with pytest.raises(PackingMissing, match=r"data\.sources\.web\.path=.*: not packed for data\.seq_len=16 yet"):
        open_order(settings(folder), 8, build=False)
    assert not list(folder.glob("best_fit-*"))


def _pack_alone(folder: Path, made: "multiprocessing.Queue[tuple[bool, str]]") -> None:
    built = []
    original = packing_module._build

    def counted(*arguments: object) -> None:
        built.append(1)
        original(*arguments)  # type: ignore[arg-type]

    packing_module._build = counted  # type: ignore[assignment]
    made.put((bool(built), packed(folder).facts["digest"]))
    made.put((bool(built), ""))


def test_one_of_many_processes_makes_it(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    made = context.Queue()
    processes = [context.Process(target=_pack_alone, args=(folder, made)) for _ in range(4)]
    for process in processes:
        process.start()
    results = [made.get(timeout=60) for _ in range(8)]
    for process in processes:
        process.join()
    assert len({digest for _, digest in results if digest}) == 1
    assert sum(built for built, digest in results if not digest) == 1


def test_a_lock_and_a_half_made_table_of_a_dead_process_are_cleared_away(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = packed(folder)
    (table,) = folder.glob("best_fit-*")
    shutil.rmtree(table)
    left = folder / f".{table.name}.making-gone-1"
    left.mkdir()
    (left / "windows.bin").write_bytes(b"half")
    for path in (left / "windows.bin", left):
        os.utime(path, (1000, 1000))
    (folder / f".{table.name}.lock").write_text("gone 1\n")
    monkeypatch.setattr(packing_module, "STALE_SECONDS", 0.2)
    monkeypatch.setattr(packing_module, "POLL_SECONDS", 0.05)
    assert packed(folder).facts == expected.facts
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_damage_leaves_nothing_behind(folder: Path) -> None:
    index = folder / "001.ds.index"
    ends = np.fromfile(index, "<u8")
    ends[[3, 5]] = ends[[5, 3]]
    ends.tofile(index)
    with pytest.raises(DataError, match=r"001\.ds\.index is damaged: a document ends before it begins"):
        packed(folder)
    assert not [path for path in folder.iterdir() if "best_fit" in path.name]


def test_a_missing_index_is_named(folder: Path) -> None:
    for number in range(2):
        (folder / f"{number:03d}.ds.index").unlink()
    with pytest.raises(DataError, match=r"data\.sources\.web\.path=.*: 000\.ds\.index and 1 more like it are missing"):
        open_order(settings(folder), 8)


def test_definition_names_the_table(folder: Path) -> None:
    order = open_order(settings(folder), 8)
    chunks = open_order(settings(folder, packing=Packing.chunk), 8)
    assert order.definition() != chunks.definition()
    assert order.definition()["sources"]["web"]["packing"] == packed(folder).facts["digest"]


def test_a_source_without_anything_to_predict_is_named(tmp_path: Path) -> None:
    write_token_file(tmp_path / "web", [[END]])
    data = settings(tmp_path / "web")
    data.sources = {"web": SourceConfig(path=str(tmp_path / "web"))}
    data.stages = [StageConfig(weights={"web": 1})]
    with pytest.raises(DataError, match=r"weights\.web=1\.0: data\.sources\.web\.path=.* holds no sample"):
        open_order(data, 8)


def test_chunks_need_none(folder: Path) -> None:
    source: TokenSource = open_source("web", folder)
    chunks = cut(source, settings(folder, packing=Packing.chunk))
    assert not isinstance(chunks, PackedWindows) and not chunks.padded and chunks.identity == {}
    left_over = sum((file.tokens - 1) % SEQ_LEN for file in source.files)
    assert chunks.wasted == pytest.approx(left_over / source.tokens)
    assert chunks.targets(np.arange(5)) == 5 * SEQ_LEN
