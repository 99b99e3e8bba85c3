import os
from pathlib import Path

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.tokens import DocumentTokenizer

from harness.data.errors import DataError
from harness.data.token_files import open_source
from harness.data.windows import Windows, open_sources
from tests.data.conftest import write_token_file

DOCUMENTS = [[5, 6, 7, 0], [8, 9, 0], [10, 0]]


def test_opens_what_datatrove_wrote(prepared: Path) -> None:
    source = open_source("web", prepared)
    assert source.token_size == 2
    assert source.tokenizer == "tokenizer/tokenizer.json"
    assert source.tokens == sum(os.path.getsize(file.path) for file in source.files) // 2 > 10_000


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize(("tokenizer", "index"), [("org/name", True), (None, True), ("org/name", False), (None, False)])
def test_width_from_metadata_index_or_content(tmp_path: Path, width: int, tokenizer: str | None, index: bool) -> None:
    documents = [[4000 + number % 90, 17, 30_000, 0] for number in range(50)]
    write_token_file(tmp_path, documents, width=width, tokenizer=tokenizer, index=index)
    source = open_source("web", tmp_path)
    assert (source.token_size, source.tokens, source.tokenizer) == (width, 200, tokenizer)


def test_metadata_of_older_datatrove_names_no_width(tmp_path: Path) -> None:
    path = write_token_file(tmp_path, DOCUMENTS, tokenizer=None)
    path.with_name(path.name + ".metadata").write_text("gpt2\n9\n9 T")
    assert open_source("web", tmp_path).tokenizer == "gpt2"


def test_unknown_tokenizer_has_no_name(tmp_path: Path) -> None:
    write_token_file(tmp_path, DOCUMENTS, tokenizer="Unknown Tokenizer|2")
    source = open_source("web", tmp_path)
    assert (source.token_size, source.tokenizer) == (2, None)


def test_files_are_sorted_and_a_single_one_will_do(tmp_path: Path) -> None:
    for name in ("b.ds", "a.ds", "c.ds"):
        write_token_file(tmp_path, DOCUMENTS, name)
    assert [file.path.name for file in open_source("web", tmp_path).files] == ["a.ds", "b.ds", "c.ds"]
    assert [file.path.name for file in open_source("web", tmp_path / "b.ds").files] == ["b.ds"]


def test_windows_predict_each_token_once_and_stay_in_their_file(tmp_path: Path) -> None:
    lengths = {"a.ds": 22, "b.ds": 5, "c.ds": 11, "d.ds": 1}
    for name, length in lengths.items():
        write_token_file(tmp_path, [list(range(length))], name)
    windows = Windows(open_source("web", tmp_path), seq_len=5)
    assert windows.count == 4 + 0 + 2 + 0
    predicted = []
    for window in range(windows.count):
        (piece,) = windows.pieces(window)
        number, offset = piece.file, piece.offset
        file = windows.source.files[number]
        tokens = np.fromfile(file.path, "<u2", count=6, offset=offset)
        assert len(tokens) == 6
        predicted += [(file.path.name, int(token)) for token in tokens[1:]]
    assert predicted == [("a.ds", token) for token in range(1, 21)] + [("c.ds", token) for token in range(1, 11)]
    with pytest.raises(IndexError, match="window 6 of 6"):
        windows.pieces(6)


def tokenise(folder: Path, tokenizer: Path, texts: list[list[str]], **options: bool) -> None:
    """datatrove's own tokenising, a task for each list of texts."""
    for rank, own in enumerate(texts):
        documents = [Document(text, str(n), metadata={"no_loss_ranges": [(0, 2)]}) for n, text in enumerate(own)]
        step = DocumentTokenizer(str(folder), str(tokenizer), eos_token="<|endoftext|>", **options)
        step.run(iter(documents), rank, len(texts))


def test_tasks_without_documents_are_passed_over(tmp_path: Path, prepared: Path) -> None:
    tokenise(tmp_path / "web", prepared / "tokenizer/tokenizer.json", [[], ["one text"], []])
    empty = [file for file in (tmp_path / "web").glob("*.ds") if file.stat().st_size == 0]
    assert len(empty) == 2
    assert [file.path.name for file in open_source("web", tmp_path / "web").files] == ["00001_00000_doc_shuffled.ds"]
    with pytest.raises(DataError, match=r"holds no tokens: all of its 1 \.ds files are empty"):
        open_source("web", empty[0])
    write_token_file(tmp_path / "web", DOCUMENTS, empty[0].name)
    empty[0].write_bytes(b"")  # its index and metadata say that it held something
    with pytest.raises(DataError, match=f"{empty[0].name} is empty"):
        open_source("web", tmp_path / "web")


def test_loss_masks_are_refused(tmp_path: Path, prepared: Path) -> None:
    """Training applies none, and must not train on what they mask."""
    tokenise(tmp_path / "web", prepared / "tokenizer/tokenizer.json", [["one text"]], save_loss_metadata=True)
    with pytest.raises(DataError) as error:
        open_source("web", tmp_path / "web")
    assert "00000_00000_doc_shuffled.ds.loss: a loss mask, which training does not apply (1 of 1 files" in str(
        error.value
    )


def damage_missing(folder: Path, file: Path) -> None:
    for entry in folder.iterdir():
        entry.unlink()
    folder.rmdir()


def damage_no_files(folder: Path, file: Path) -> None:
    file.unlink()


def damage_empty(folder: Path, file: Path) -> None:
    file.write_bytes(b"")


def damage_odd(folder: Path, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def damage_truncated(folder: Path, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4])


def damage_metadata(folder: Path, file: Path) -> None:
    file.with_name(file.name + ".index").unlink()
    file.write_bytes(file.read_bytes()[:-4])


def damage_widths(folder: Path, file: Path) -> None:
    write_token_file(folder, DOCUMENTS, "other.ds", width=4)


def damage_tokenizers(folder: Path, file: Path) -> None:
    write_token_file(folder, DOCUMENTS, "other.ds", tokenizer="another/one")


def damage_directory(folder: Path, file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing, "does not exist. Give a folder with .ds files"),
        (damage_no_files, "holds no .ds files"),
        (damage_empty, "shard.ds is empty"),
        (damage_odd, "shard.ds has 17 bytes, no multiple of 2 bytes per token"),
        (damage_truncated, "shard.ds holds 7 tokens of 2 bytes, but its index ends at 9"),
        (damage_metadata, "shard.ds holds 7 tokens of 2 bytes, but its metadata says 9"),
        (damage_widths, "mixes token widths: shard.ds has 2 bytes per token (from its metadata), other.ds has 4"),
        (damage_tokenizers, "mixes tokenizers: another/one, some/tokenizer"),
        (damage_directory, "shard.ds cannot be read: Is a directory"),
    ],
)
def test_says_what_is_wrong(tmp_path: Path, damage, message: str) -> None:
    folder = tmp_path / "web"
    damage(folder, write_token_file(folder, DOCUMENTS, "shard.ds"))
    with pytest.raises(DataError) as error:
        open_source("web", folder)
    assert f"data.sources.web.path={folder}" in str(error.value)
    assert message in str(error.value)


def test_points_at_the_folder_below(tmp_path: Path) -> None:
    write_token_file(tmp_path / "tokens", DOCUMENTS)
    with pytest.raises(DataError, match=f"Did you mean {tmp_path}/tokens"):
        open_source("web", tmp_path)


def test_refuses_other_files(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("text")
    with pytest.raises(DataError, match=r"its name must end in \.ds"):
        open_source("web", tmp_path / "text.txt")


def test_tells_all_problems_of_all_sources(tmp_path: Path) -> None:
    damage_truncated(tmp_path, write_token_file(tmp_path / "cut", DOCUMENTS, "shard.ds"))
    write_token_file(tmp_path / "short", DOCUMENTS)
    with pytest.raises(DataError) as error:
        open_sources([(name, tmp_path / name) for name in ("cut", "gone", "short")], seq_len=9)
    cut_index, cut_metadata, gone, short = str(error.value).splitlines()
    assert "its index ends at 9" in cut_index and "its metadata says 9" in cut_metadata
    assert "data.sources.gone.path" in gone
    assert "holds no sample of data.seq_len=9: its longest file has 9 tokens, and 10 are needed" in short
    assert open_sources([("short", tmp_path / "short")], seq_len=8)[0].tokens == 9
