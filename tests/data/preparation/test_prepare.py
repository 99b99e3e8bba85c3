import errno
import fcntl
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

import harness.data.preparation.inputs as inputs_module
from harness.data.__main__ import main
from harness.data.errors import DataError
from harness.data.preparation.prepare import Request, prepare
from harness.data.preparation.readers import DocumentReader
from harness.data.token_files import TokenSource, open_source
from tests.data.conftest import write_texts

TEXTS = [f"Document {number}: " + " ".join(f"word{number * part % 97}" for part in range(40)) for number in range(30)]
VOCAB = ["--vocab-size", "400"]


def documents(folder: Path) -> list[str]:
    """The texts back from token files, sorted; each must end with the end-of-document token and hold no other."""
    manifest = json.loads((folder / "manifest.json").read_text())
    tokenizer = Tokenizer.from_file(str(folder / manifest["tokenizer"]))
    source = open_source("prepared", folder)
    texts = []
    for file in source.files:
        tokens = np.fromfile(file.path, f"<u{source.token_size}")
        ends = np.fromfile(file.path.with_name(file.path.name + ".index"), "<u8").astype(int)
        for part in np.split(tokens, ends[:-1]):
            assert part[-1] == manifest["eos_token_id"] and (part[:-1] != manifest["eos_token_id"]).all()
            texts.append(tokenizer.decode(part[:-1].tolist()))
    return sorted(texts)


def write_jsonl(path: Path, texts: list[str], key: str = "text") -> None:
    lines = "".join(json.dumps({"id": number, key: text, "url": "x"}) + "\n" for number, text in enumerate(texts))
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        file.write(lines)


def make_text(folder: Path) -> list[str]:
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text)
    return []


def make_jsonl(folder: Path) -> list[str]:
    write_jsonl(folder / "a.jsonl", TEXTS[:10])
    (folder / "below").mkdir()
    write_jsonl(folder / "below" / "b.jsonl.gz", TEXTS[10:])
    return []


def make_keyed_jsonl(folder: Path) -> list[str]:
    write_jsonl(folder / "a.jsonl", TEXTS, key="content")
    return ["--text-key", "content"]


def make_parquet(folder: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"n": range(31), "body": [*TEXTS, None]}), folder / "a.parquet")
    return ["--text-key", "body"]


def make_dataset(folder: Path) -> list[str]:
    from datasets import Dataset

    Dataset.from_dict({"text": TEXTS, "n": range(30)}).save_to_disk(folder)
    return []


def make_dataset_splits(folder: Path) -> list[str]:
    from datasets import Dataset, DatasetDict

    other = Dataset.from_dict({"text": ["not this"]})
    DatasetDict({"train": Dataset.from_dict({"text": TEXTS}), "test": other}).save_to_disk(folder)
    return []


@pytest.mark.parametrize(
    "make", [make_text, make_jsonl, make_keyed_jsonl, make_parquet, make_dataset, make_dataset_splits]
)
def test_every_format_comes_back_whole(tmp_path: Path, make, capfd: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    extra = make(source)
    assert main(["prepare", "--input", str(source), "--output", str(output), *VOCAB, *extra]) == 0
    assert documents(output) == sorted(TEXTS)
    printed = capfd.readouterr()
    assert printed.out.startswith(f"{output}: ") and "tokens in 30 documents" in printed.out
    if make is make_jsonl:  # the size of gzipped text is not known before
        packed = gzip.decompress((source / "below" / "b.jsonl.gz").read_bytes())
        done = f"tokenising: {((source / 'a.jsonl').stat().st_size + len(packed)) / 1000:.2f}kB"
    else:
        done = "tokenising: 100%"
    assert done in printed.err
    assert "INFO" not in printed.err and "datatrove" not in printed.err
    assert "Processing done" in (output / "logs" / "prepare.log").read_text()


def test_manifest_describes_what_is_there(tmp_path: Path) -> None:
    write_texts(tmp_path / "in")
    manifest = prepare(Request(str(tmp_path / "in"), tmp_path / "out", vocab_size=400))
    for entry in manifest["files"]:
        file = tmp_path / "out" / entry["name"]
        assert file.stat().st_size == entry["bytes"]
        assert subprocess.check_output(["sha256sum", str(file)], text=True).split()[0] == entry["sha256"]
    there = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    listed = {entry["name"] for entry in manifest["files"]}
    assert {name for name in there if not name.startswith("logs/")} == listed | {"manifest.json"}
    assert manifest["tokens"] == sum(entry["tokens"] for entry in manifest["token_files"])
    assert manifest["vocab_size"] == 400 and manifest["input"] == str(tmp_path / "in")
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_the_same_input_gives_the_same_files(tmp_path: Path) -> None:
    write_texts(tmp_path / "in")
    made = [prepare(Request(str(tmp_path / "in"), tmp_path / name, vocab_size=400)) for name in ("one", "two")]
    assert made[0]["files"] == made[1]["files"]


def test_workers_do_not_change_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs_module, "TASK_BYTES", 5000)
    write_texts(tmp_path / "in")
    made = [
        prepare(Request(str(tmp_path / "in"), tmp_path / f"out{workers}", vocab_size=400, workers=workers))
        for workers in (1, 2)
    ]
    assert made[0]["files"] == made[1]["files"]
    assert len(made[0]["token_files"]) > 2 and made[0]["documents"] == 12


def test_a_text_file_is_one_document_however_long(tmp_path: Path) -> None:
    text = "".join(f"Paragraph {number}. " + "lorem ipsum " * 400 + "\n\n" for number in range(60))
    (tmp_path / "in.txt").write_text(text)
    prepare(Request(str(tmp_path / "in.txt"), tmp_path / "out", vocab_size=300))
    assert documents(tmp_path / "out") == [text.strip()]


def test_with_a_given_tokenizer(tmp_path: Path, prepared: Path) -> None:
    write_texts(tmp_path / "in", seed=3)
    manifest = prepare(Request(str(tmp_path / "in"), tmp_path / "out", tokenizer=str(prepared / "tokenizer")))
    assert manifest["vocab_size"] == 500 and manifest["eos_token"] == "<|endoftext|>"
    given, kept = (folder / "tokenizer" / "tokenizer.json" for folder in (prepared, tmp_path / "out"))
    assert given.read_bytes() == kept.read_bytes()
    assert open_source("x", tmp_path / "out").tokenizer == "tokenizer/tokenizer.json"


@pytest.fixture
def nameless(tmp_path: Path, prepared: Path) -> Path:
    """A tokenizer whose end-of-document token nothing names."""
    folder = tmp_path / "nameless"
    folder.mkdir()
    text = (prepared / "tokenizer" / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<|endoftext|>", "<stop>"))
    return folder


def test_names_the_end_of_document_token(tmp_path: Path, nameless: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_texts(tmp_path / "in")
    command = ["prepare", "--input", f"{tmp_path}/in", "--output", f"{tmp_path}/out", "--tokenizer", str(nameless)]
    assert main(command) == 2
    assert "names no end-of-document token. Pass it with --eos-token" in capsys.readouterr().err
    assert main([*command, "--eos-token", "<none>"]) == 2
    assert f"--eos-token <none>: not in the vocabulary of {nameless}/tokenizer.json" in capsys.readouterr().err
    assert main([*command, "--eos-token", "<stop>"]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["eos_token"], manifest["eos_token_id"]) == ("<stop>", 0)
    assert json.loads((tmp_path / "out/tokenizer/tokenizer_config.json").read_text())["eos_token"] == "<stop>"


def test_again_does_nothing_and_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts, output = write_texts(tmp_path / "in"), tmp_path / "out"
    command = ["prepare", "--input", str(texts), "--output", str(output), *VOCAB]
    assert main(command) == 0
    before = {file: file.stat().st_mtime_ns for file in output.rglob("*")}
    assert main(command) == 0
    assert f"{output} is already complete: " in capsys.readouterr().out
    assert main([*command[:-1], "300"]) == 2
    assert "exists and was made from something else (tokenizer differ" in capsys.readouterr().err
    (texts / "new.txt").write_text("more")
    assert main(command) == 2
    assert "(identity differ" in capsys.readouterr().err
    (texts / "new.txt").unlink()
    assert {file: file.stat().st_mtime_ns for file in output.rglob("*")} == before
    next(output.glob("*.ds")).write_bytes(b"")
    assert main(command) == 2
    assert "damaged: 00000_00000_doc_shuffled.ds missing or cut off" in capsys.readouterr().err


def test_several_inputs_are_read_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, part in (("one", TEXTS[:10]), ("two", TEXTS[10:])):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "a.jsonl", part)
    command = ["prepare", "--output", f"{tmp_path}/out", *VOCAB, "--input", f"{tmp_path}/one", "--input"]
    assert main([*command, f"{tmp_path}/two/a.jsonl"]) == 0
    assert documents(tmp_path / "out") == sorted(TEXTS)
    assert main([*command, f"{tmp_path}/one/a.jsonl"]) == 2
    error = capsys.readouterr().err
    assert f"--input {tmp_path}/one/a.jsonl: overlaps --input {tmp_path}/one: documents would be read twice." in error
    assert main([*command, ""]) == 2  # not this folder: most likely a variable of the shell that is not set
    assert "--input: empty. Name a file or a folder." in capsys.readouterr().err
    assert main([*command, f"{tmp_path}/nowhere"]) == 2
    assert f"--input {tmp_path}/nowhere: does not exist" in capsys.readouterr().err
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"png")
    assert main([*command, f"{tmp_path}/pictures"]) == 2
    assert f"--input {tmp_path}/pictures: no jsonl file. Names must end in .jsonl" in capsys.readouterr().err


def test_a_saved_data_set_goes_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_dataset_splits(tmp_path / "set")
    (tmp_path / "text").mkdir()
    make_text(tmp_path / "text")
    command = ["prepare", "--output", f"{tmp_path}/out", *VOCAB, "--input", f"{tmp_path}/set"]
    assert main([*command, "--input", f"{tmp_path}/text"]) == 2
    assert (
        f"--input {tmp_path}/set: a data set of the library datasets must be the only --input"
        in capsys.readouterr().err
    )
    assert main(command) == 0
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .endswith("passed over 1 file (another split 1) (listed in passed_over.jsonl)")
    )


def test_the_identity_covers_the_whole_tokenizer(
    tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, folder = write_texts(tmp_path / "in"), tmp_path / "tokenizer"
    shutil.copytree(prepared / "tokenizer", folder)
    file = folder / "tokenizer.json"
    original = file.read_text()
    command = ["prepare", "--input", str(texts), "--output", f"{tmp_path}/out", "--tokenizer", str(folder)]
    assert main(command) == 0
    changes: dict[str, object] = {
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None if json.loads(original)["post_processor"] else {"type": "ByteLevel"},
        "truncation": {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0},
        "added_tokens": [],
    }
    for key, value in changes.items():
        file.write_text(json.dumps(json.loads(original) | {key: value}))
        assert main(command) == 2, key
        assert "exists and was made from something else (tokenizer differ" in capsys.readouterr().err
    file.write_text(json.dumps(json.loads(original), indent=7))  # says the same
    assert main(command) == 0
    (folder / "special_tokens_map.json").write_text("{}")
    assert main(command) == 2


def test_chat_templates_are_kept_beside_the_data(tmp_path: Path, prepared: Path) -> None:
    texts, folder = write_texts(tmp_path / "in"), tmp_path / "tokenizer"
    shutil.copytree(prepared / "tokenizer", folder)
    (folder / "chat_template.jinja").write_text("x")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("y")
    command = ["prepare", "--input", str(texts), "--output", f"{tmp_path}/out", "--tokenizer", str(folder)]
    assert main(command) == 0
    kept = tmp_path / "out" / "tokenizer"
    assert (kept / "chat_template.jinja").read_text() == "x"
    assert (kept / "additional_chat_templates" / "tool_use.jinja").read_text() == "y"
    (folder / "chat_template.jinja").write_text("z")
    assert main(command) == 0, "it has no bearing on the tokens"


def test_what_an_earlier_version_made_is_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = write_texts(tmp_path / "in")
    command = ["prepare", "--input", str(texts), "--output", f"{tmp_path}/out", *VOCAB]
    assert main(command) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    newer = manifest | {"made_from": manifest["made_from"] | {"versions": {"tokenizers": "0.1"}}}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(newer))
    assert main(command) == 0  # what is complete stays so when a library is upgraded
    del manifest["made_from"]["method"]
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    assert main(command) == 2
    assert "(method differ" in capsys.readouterr().err


def test_a_file_that_came_later_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = write_texts(tmp_path / "in")
    command = ["prepare", "--input", str(texts), "--output", f"{tmp_path}/out", *VOCAB]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("; nothing passed over")
    (texts / "late.docx").touch()
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("; passed over 1 file (unknown suffix 1)")


def test_notes_come_before_the_last_line(tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = Tokenizer.from_file(str(prepared / "tokenizer" / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|begin|>"])
    tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "in.txt").write_text("Documents end with <|endoftext|>, <|endoftext|> or <|begin|>.")
    command = ["prepare", "--input", f"{tmp_path}/in.txt", "--output", f"{tmp_path}/out", "--tokenizer", str(tmp_path)]
    assert main(command) == 0
    begins, spelled, last = capsys.readouterr().out.splitlines()
    assert begins == "note: every document begins with <|begin|>, which the tokenizer's post-processor adds"
    assert (
        spelled
        == "note: the text of 1 document spells out special tokens, encoded as text: <|endoftext|> 2, <|begin|> 1"
    )
    assert "tokens in 1 documents" in last
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["frame"] == {"before": ["<|begin|>"], "after": ["<|endoftext|>"]}
    [file] = (tmp_path / "out").glob("*.ds")
    tokens = np.fromfile(file, "<u2")
    assert tokens[0] == manifest["vocab_size"] - 1 and (tokens == tokens[0]).sum() == 1 == (tokens == 0).sum()


def test_documents_that_get_lost_on_the_way_are_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = write_texts(tmp_path / "in")
    monkeypatch.setattr("harness.data.preparation.finish.open_source", damage_index)
    assert main(["prepare", "--input", str(texts), "--output", f"{tmp_path}/out", *VOCAB]) == 2
    error = capsys.readouterr().err
    assert f"--output {tmp_path}/out: token files hold 11 documents, expected 12" in error


def damage_index(name: str, folder: Path) -> TokenSource:
    """A document's end is gone from an index: the rest of the file still looks right."""
    source = open_source(name, folder)
    index = source.files[0].path.with_name(f"{source.files[0].path.name}.index")
    index.write_bytes(index.read_bytes()[8:])
    return source


def test_an_output_inside_its_input_is_no_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    command = ["prepare", "--input", str(tmp_path), "--output", f"{tmp_path}/out", *VOCAB]
    for said in ("out: ", "out is already complete: "):
        assert main(command) == 0
        assert said in (last := capsys.readouterr().out.splitlines()[-1]) and last.endswith("; nothing passed over")


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    """Its size and time are part of what the output is known by."""
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    reader = DocumentReader(inputs_module.find_inputs(str(tmp_path), None, "text"))
    documents = reader.run(None, 0, 1)
    next(documents)
    os.utime(tmp_path / "a.jsonl", ns=(1, 1))
    with pytest.raises(DataError, match=rf"^{tmp_path}/a\.jsonl: changed while it was read"):
        list(documents)


def test_a_folder_of_others_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = write_texts(tmp_path / "in")
    assert main(["prepare", "--input", str(texts), "--output", str(texts), *VOCAB]) == 2
    assert "exists and is no prepared data set" in capsys.readouterr().err
    assert len(list(texts.iterdir())) == 12


def test_after_a_killed_prepare_and_beside_a_running_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts, partial = write_texts(tmp_path / "in"), tmp_path / ".out.partial"
    (partial / "logs").mkdir(parents=True)
    (partial / "00000_unshuffled.ds").write_bytes(b"1234")
    (partial / "lock").touch()
    command = ["prepare", "--input", str(texts), "--output", f"{tmp_path}/out", *VOCAB]
    with (partial / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(command) == 2
        assert "another prepare is making it" in capsys.readouterr().err
        assert (partial / "00000_unshuffled.ds").exists()
    assert main(command) == 0
    assert not partial.exists() and len(list((tmp_path / "out").glob("*.ds"))) == 1


def bad_missing(folder: Path) -> list[str]:
    folder.rmdir()
    return []


def bad_nothing(folder: Path) -> list[str]:
    (folder / "picture.png").write_bytes(b"png")
    return []


def bad_mixed(folder: Path) -> list[str]:
    make_text(folder)
    make_jsonl(folder)
    return []


def bad_format(folder: Path) -> list[str]:
    make_text(folder)
    return ["--format", "parquet"]


def bad_empty(folder: Path) -> list[str]:
    (folder / "a.txt").touch()
    return []


def bad_blank(folder: Path) -> list[str]:
    (folder / "a.txt").write_text(" \n\n \n")
    return []


def bad_key(folder: Path) -> list[str]:
    write_jsonl(folder / "a.jsonl", TEXTS)
    with (folder / "a.jsonl").open("a") as file:
        file.write('\n{"content": "no text"}\n')
    return []


def bad_json(folder: Path) -> list[str]:
    (folder / "a.jsonl").write_text('{"text": "good"}\n{"text": "cut o')
    return []


def bad_row(folder: Path) -> list[str]:
    (folder / "a.jsonl").write_text("[1, 2]\n")
    return []


def bad_type(folder: Path) -> list[str]:
    (folder / "a.jsonl").write_text('{"text": {"nested": 1}}\n')
    return []


def bad_gzip(folder: Path) -> list[str]:
    write_jsonl(folder / "a.jsonl.gz", TEXTS)
    (folder / "a.jsonl.gz").write_bytes((folder / "a.jsonl.gz").read_bytes()[:-20])
    return []


def bad_encoding(folder: Path) -> list[str]:
    (folder / "a.txt").write_bytes("café".encode("latin-1"))
    return []


def bad_parquet(folder: Path) -> list[str]:
    (folder / "a.parquet").write_text("not parquet")
    return []


def bad_column(folder: Path) -> list[str]:
    make_parquet(folder)
    return []


def bad_dataset(folder: Path) -> list[str]:
    make_text(folder)
    return ["--format", "dataset"]


def bad_dataset_column(folder: Path) -> list[str]:
    make_dataset(folder)
    return ["--text-key", "body"]


def bad_vocabulary(folder: Path) -> list[str]:
    make_text(folder)
    return ["--vocab-size", "256"]


def bad_tokenizer(folder: Path) -> list[str]:
    make_text(folder)
    return ["--tokenizer", "nowhere"]


def bad_tokenizer_content(folder: Path) -> list[str]:
    make_text(folder)
    tokenizer = folder.parent / "tokenizer.json"
    tokenizer.write_text('{"model": {"vocab": {"</s>": 0}}}')
    return ["--tokenizer", str(tokenizer)]


def bad_workers(folder: Path) -> list[str]:
    make_text(folder)
    return ["--workers", "0"]


def bad_eos(folder: Path) -> list[str]:
    make_text(folder)
    return ["--eos-token", "</s>"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bad_missing, "--input {folder}: does not exist"),
        (bad_nothing, "--input {folder}: no file to read. Names must end in .txt"),
        (bad_mixed, "--input {folder}: holds text and jsonl files. Choose one with --format."),
        (bad_format, "--input {folder}: no parquet file. Names must end in .parquet."),
        (bad_empty, "--input {folder}: all files are empty"),
        (bad_blank, "--input {folder}: no text in it, so there is nothing to tokenise"),
        (bad_key, "{folder}/a.jsonl line 32: no key 'text'; its keys: content. Pass --text-key."),
        (bad_json, "{folder}/a.jsonl line 2: not JSON"),
        (bad_row, "{folder}/a.jsonl line 1: no key 'text'; its keys: none, it is a list"),
        (bad_type, "{folder}/a.jsonl line 1: 'text' holds a dict, not text"),
        (bad_gzip, "{folder}/a.jsonl.gz: the gzip file is damaged or truncated"),
        (bad_encoding, "{folder}/a.txt: not UTF-8 text"),
        (bad_parquet, "{folder}/a.parquet: no Parquet file"),
        (bad_column, "{folder}/a.parquet: no column 'text'; there are n, body. Pass --text-key."),
        (bad_dataset, "--input {folder}: no data set saved with save_to_disk"),
        (bad_dataset_column, "--input {folder}: no column 'body'; there are text, n. Pass --text-key."),
        (bad_vocabulary, "--vocab-size 256: for training a tokenizer, so at least 257"),
        (bad_tokenizer, "--tokenizer nowhere: no tokenizer.json there"),
        (bad_tokenizer_content, "the tokenizers library cannot load it"),
        (bad_workers, "--workers 0: must be at least 1"),
        (bad_eos, "--eos-token </s>: goes with --tokenizer"),
    ],
)
def test_bad_input(tmp_path: Path, make, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    extra = make(folder)
    assert main(["prepare", "--input", str(folder), "--output", str(output), *extra]) == 2
    error = capfd.readouterr().err
    assert message.format(folder=folder) in error
    assert "Traceback" not in error
    assert not output.exists() and not (tmp_path / ".out.partial").exists()


def test_a_link_to_nothing_is_not_passed_over(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_texts(tmp_path / "in")
    (tmp_path / "in" / "x.txt").symlink_to(tmp_path / "nowhere")
    assert main(["prepare", "--input", f"{tmp_path}/in", "--output", f"{tmp_path}/out", *VOCAB]) == 2
    assert f"--input {tmp_path}/in/x.txt: cannot be read: No such file or directory" in capfd.readouterr().err


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_texts(tmp_path / "in" / "closed")
    (tmp_path / "in" / "a.txt").write_text("text")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    with pytest.raises(DataError, match=r"in/closed: cannot be read: Permission denied"):
        inputs_module.find_inputs(f"{tmp_path}/in", None, "text")


def test_a_file_that_vanishes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = write_texts(tmp_path / "in")
    found = inputs_module.find_inputs(str(texts), None, "text")
    (texts / "003.txt").unlink()
    monkeypatch.setattr("harness.data.preparation.prepare.find_inputs", lambda *_: found)
    assert main(["prepare", "--input", str(texts), "--output", f"{tmp_path}/out", *VOCAB]) == 2
    assert f"--input {texts}: cannot read {texts}/003.txt: No such file or directory" in capfd.readouterr().err


def test_a_hub_name_without_a_network(tmp_path: Path) -> None:
    """In a process of its own: the hub library looks at HF_HUB_OFFLINE when it is imported."""
    command = [sys.executable, "-m", "harness.data", "prepare", "--input", "no-org/no-data", "--format", "dataset"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "error: --input no-org/no-data: no such path, and datasets cannot load it from the hub" in done.stderr


def test_output_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_texts(tmp_path / "in")
    (tmp_path / "file").touch()
    assert main(["prepare", "--input", f"{tmp_path}/in", "--output", f"{tmp_path}/file/out", *VOCAB]) == 2
    assert f"--output {tmp_path}/file/out: cannot write " in (error := capsys.readouterr().err)
    assert "Not a directory" in error


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_disk_full(tmp_path: Path, small_disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_texts(tmp_path / "in", files=30, words=3000)
    command = ["prepare", "--input", f"{tmp_path}/in", "--output", f"{small_disk}/out", *VOCAB]
    assert main(command) == 2
    error = capfd.readouterr().err
    assert f"--output {small_disk}/out: cannot write" in error and "No space left on device" in error
    assert "Traceback" not in error
    subprocess.run(["mount", "-o", "remount,size=9M", str(small_disk)], check=True)
    assert main(command) == 0
    assert "training tokenizer" not in capfd.readouterr().err
    assert [entry.name for entry in small_disk.iterdir()] == ["out"]
