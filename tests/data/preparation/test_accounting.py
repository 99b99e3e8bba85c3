"""What goes into a preparation comes out of it, or is listed: corpora of every readable kind against a reader of their own."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datatrove.executor.local import LocalPipelineExecutor
from tokenizers import Tokenizer

import harness.data.preparation.inputs as inputs_module
from harness.data.preparation.job import Job
from harness.data.preparation.prepare import Request, prepare
from harness.data.preparation.stages import Stage
from tests.data.documents.test_compressed import zstd

EOS = "<|endoftext|>"
COMPRESS = {"": lambda data: data, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}
SUFFIXES = {"text": [".txt", ".md", ".rst", ".TXT"], "jsonl": [".jsonl", ".ndjson", ".json"], "parquet": [".parquet"]}
PIECES = [
    "plain words ", "naïve café ", "日本語のテキスト。", "עברית ", "👩‍👩‍👧 ", "e\u0301", "\u2028", "\u00a0", "\t", "  ", "\n", "\r\n", "\n\n",
    EOS, "<|endoftext", "\\n", '"quoted"', "\u0000", "\ufeff", "x" * 3000, "１２３ 456",
]  # fmt: skip
NAMES = ["", " #", "\n", " ", "::x", "%20", "é", os.fsdecode(b"\xff")]


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks one after the other, here: a process for each would take most of the time."""

    def run_here(job: Job, stage: Stage, todo: list[int], workers: int | None) -> None:
        for rank in todo:
            logs = str(job.logs(stage.name))
            LocalPipelineExecutor(stage.pipeline(), tasks=stage.tasks, logging_dir=logs)._run_for_rank(rank)

    monkeypatch.setattr("harness.data.preparation.local._run_stage", run_here)
    monkeypatch.setattr(inputs_module, "TASK_BYTES", 3000)


class Corpus:
    """A random tree of files of one format, and of other things."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.chance = random.Random(seed)
        self.format = self.chance.choice(list(SUFFIXES))
        self.bad_rows = 0
        for place in (root, root / "deep" / "er", root / "ünï cödé [1] {a,b} *", root.with_name("elsewhere")):
            place.mkdir(parents=True)
            for number in range(self.chance.randint(1, 3)):
                self.write_file(place, f"{number}{self.chance.choice(NAMES)}")
        (root / "linked").symlink_to("../elsewhere")
        (root / "deep" / "loop").symlink_to(root)
        (root / ".hidden").mkdir()
        self.write_file(root / ".hidden", "x")
        (root / "notes.pdf").write_bytes(b"%PDF")
        (root / f"empty{SUFFIXES[self.format][0]}").touch()
        (root / ("other.txt" if self.format != "text" else "other.jsonl")).write_text('{"text": "other"}')
        self.passed_over = Counter(
            {"hidden": 1, "loop of links": 1, "unknown suffix": 1, "empty file": 1, self.other_format: 1}
        )

    @property
    def other_format(self) -> str:
        return f"another format ({'text' if self.format != 'text' else 'jsonl'})"

    def text(self) -> str:
        if self.chance.random() < 0.05:
            return "a long document, " * 20_000
        return "".join(self.chance.choices(PIECES, k=self.chance.randint(0, 12)))

    def write_file(self, folder: Path, stem: str) -> None:
        suffix = self.chance.choice(SUFFIXES[self.format])
        if self.format == "parquet":
            values = [None if self.chance.random() < 0.1 else self.text() for _ in range(self.chance.randint(1, 9))]
            table = pa.table({"n": range(len(values)), "text": pa.array(values, pa.string())})
            with open(folder / f"{stem}{suffix}", "wb") as file:
                pq.write_table(table, file, row_group_size=self.chance.randint(1, 9))
            return
        compression = self.chance.choice(list(COMPRESS))
        content = self.text().encode() if self.format == "text" else self.json(suffix)
        content = self.chance.choice([b"", b"\xef\xbb\xbf"]) + content
        (folder / f"{stem}{suffix}{compression}").write_bytes(COMPRESS[compression](content))

    def json(self, suffix: str) -> bytes:
        rows: list[object] = [
            {"text": self.text(), "score": float("nan")}
            if self.chance.random() < 0.2
            else {"id": n, "text": self.text()}
            for n in range(self.chance.randint(1, 9))
        ]
        rows += [bad for bad in ({"text": None}, {"body": "x"}, {"text": 7}, [1]) if self.chance.random() < 0.2]
        kind = self.chance.choice(["lines", "array", "object"]) if suffix == ".json" else "lines"
        if kind == "array":
            return json.dumps(rows, indent=self.chance.choice([None, 1])).encode()
        if kind == "object":
            return json.dumps(rows[0], indent=1).encode()
        ascii_only, end = self.chance.random() < 0.5, self.chance.choice(["\n", "\r\n", "\n\n"])
        return end.join(json.dumps(row, ensure_ascii=ascii_only) for row in rows).encode()


def read_independently(root: Path) -> Iterator[object]:
    """What stands under `text` of every row, or the whole text, of the files that count; something else: a bad row."""
    for parent, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if name not in (".hidden", "loop")]
        for name in files:
            path = Path(parent) / name
            if name.startswith(("empty", "other", "notes")):
                continue
            data = path.read_bytes()
            if name.endswith(".zst"):
                data = pa.input_stream(io.BytesIO(data), compression="zstd").read()
            for suffix, library in ((".gz", gzip), (".bz2", bz2), (".xz", lzma)):
                if name.endswith(suffix):
                    data = library.decompress(data)
            plain = name.lower()
            for suffix in COMPRESS:
                plain = plain.removesuffix(suffix) if suffix else plain
            if plain.endswith(".parquet"):
                yield from pq.read_table(io.BytesIO(data))["text"].to_pylist()
            elif plain.endswith((".txt", ".md", ".rst")):
                yield "\n".join(data.decode("utf-8-sig").replace("\r\n", "\n").split("\r")).strip()
            else:
                yield from (
                    row["text"] if isinstance(row, dict) and "text" in row else 0 for row in json_rows(data, plain)
                )


def json_rows(data: bytes, name: str) -> list[object]:
    text = data.decode("utf-8-sig")
    if name.endswith(".json"):
        try:
            whole = json.loads(text)
        except ValueError:
            pass
        else:
            return whole if isinstance(whole, list) else [whole]
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def documents(folder: Path) -> list[str]:
    """The texts of all documents in token files, cut by their indices."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    eos = tokenizer.token_to_id(EOS)
    found = []
    for file in folder.glob("*.ds"):
        tokens = np.fromfile(file, "<u2")
        ends = np.fromfile(f"{file}.index", "<u8").astype(int)
        assert ends[-1] == len(tokens)
        for part in np.split(tokens, ends[:-1]):
            assert part[-1] == eos and (part[:-1] != eos).all()
            found.append(tokenizer.decode(part[:-1].tolist(), skip_special_tokens=False))
    return found


@pytest.mark.parametrize("seed", range(24))
def test_every_document_comes_out_or_is_listed(
    tmp_path: Path, prepared: Path, in_this_process: None, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = Corpus(tmp_path / "in", seed)
    rows = list(read_independently(corpus.root))
    expected = [row for row in rows if isinstance(row, str) and row]
    empty = sum(row is None or row == "" for row in rows)
    bad = len(rows) - len(expected) - empty
    manifest = prepare(
        Request(
            str(corpus.root), tmp_path / "out", corpus.format, tokenizer=str(prepared / "tokenizer"), max_bad_lines=9
        )
    )
    assert manifest is not None
    assert Counter(documents(tmp_path / "out")) == Counter(expected)
    assert manifest["documents"] == manifest["steps"][0]["documents"] == len(expected)
    reasons = {"empty text": empty, "bad row": bad}
    assert manifest["passed_over"]["files"] == dict(corpus.passed_over)
    assert manifest["passed_over"]["rows"] == {reason: count for reason, count in reasons.items() if count}
    lines = [json.loads(line) for line in (tmp_path / "out" / "passed_over.jsonl").read_text().splitlines()]
    assert sum("rows" not in line for line in lines) == corpus.passed_over.total()
    assert sum(line.get("rows", 0) for line in lines) == empty + bad
    spelled = sum(EOS in text for text in expected)
    assert manifest.get("special_tokens_in_text", {"documents": 0})["documents"] == spelled
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"tokens in {len(expected)} documents" in last and "passed over 5 files (" in last
    assert all(f"{reason} {count}" in last for reason, count in reasons.items() if count)


@pytest.mark.parametrize("seed", range(24, 30))
def test_with_a_recipe_what_is_dropped_is_counted_too(
    tmp_path: Path, prepared: Path, in_this_process: None, seed: int
) -> None:
    corpus = Corpus(tmp_path / "in", seed)
    expected = [row for row in read_independently(corpus.root) if isinstance(row, str) and row]
    (tmp_path / "recipe.yaml").write_text("exact_dedup: true")
    manifest = prepare(
        Request(
            str(corpus.root), tmp_path / "out", corpus.format, tokenizer=str(prepared / "tokenizer"), max_bad_lines=9,
            recipe=tmp_path / "recipe.yaml", keep_removed=1000,
        )
    )  # fmt: skip
    assert manifest is not None
    assert Counter(documents(tmp_path / "out")) == Counter(set(expected))
    assert [step["documents"] for step in manifest["steps"]] == [len(expected), len(set(expected))]
    removed = [
        json.loads(line)["text"]
        for file in (tmp_path / "out" / "logs" / "removed").rglob("*.jsonl")
        for line in file.read_text().split("\n")
        if line
    ]
    assert Counter(removed) == Counter(expected) - Counter(set(expected))
    assert manifest["steps"][1].get("dropped", {}) == ({"duplicate": len(removed)} if removed else {})
    rows = manifest["passed_over"]["rows"]
    assert sum(rows.values()) == len(list(read_independently(corpus.root))) - len(expected)


def test_of_a_data_set_too(tmp_path: Path, prepared: Path, in_this_process: None) -> None:
    from datasets import Dataset, DatasetDict

    chance = random.Random(0)
    texts = [chance.choice([None, "", "".join(chance.choices(PIECES, k=5))]) for _ in range(200)]
    columns = {"n": range(200), "text": texts, "picture": [b"x"] * 200}
    other = Dataset.from_dict({"text": ["not this"]})
    DatasetDict({"train": Dataset.from_dict(columns), "test": other}).save_to_disk(tmp_path / "in")
    manifest = prepare(Request(str(tmp_path / "in"), tmp_path / "out", tokenizer=str(prepared / "tokenizer")))
    assert manifest is not None
    expected = [text for text in texts if text]
    assert Counter(documents(tmp_path / "out")) == Counter(expected)
    assert manifest["passed_over"] == {
        "files": {"another split": 1},
        "rows": {"empty text": len(texts) - len(expected)},
    }
