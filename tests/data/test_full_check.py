"""Whole files: every byte, token and document."""

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from harness.data import full_check as module
from harness.data.checksums import sums_path, write_checksums
from harness.data.full_check import Expectation, Progress, check_file, progress_path
from tests.data.conftest import write_token_file

EOS = 0


@pytest.fixture(params=[2, 4])
def file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Expectation:
    """1,000 documents of 100 tokens in many chunks."""
    monkeypatch.setattr(module, "CHUNK_BYTES", 4096)
    documents = [[*range(1, 100), EOS] for _ in range(1000)]
    path = write_token_file(tmp_path / "web", documents, "a.ds", width=request.param)
    write_checksums(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Expectation(path, f"data.sources.web.path={path.parent}", request.param, 128, EOS, digest)


def problems(file: Expectation) -> list[str]:
    return check_file(file, lambda count: None)


def poke(file: Expectation, token: int, value: int) -> None:
    with open(file.path, "r+b") as handle:
        handle.seek(token * file.token_size)
        handle.write(value.to_bytes(file.token_size, "little"))


def test_a_sound_file_is_read_once(file: Expectation) -> None:
    told: list[int] = []
    assert check_file(file, told.append) == []
    assert sum(told) == file.path.stat().st_size


def test_a_changed_token_is_seen_by_both_kinds_of_checksum(file: Expectation) -> None:
    poke(file, 50_001, 77)
    sha, block = problems(file)
    assert "a.ds does not have the sha256 that manifest.json names" in sha
    assert f"a.ds is damaged: block {50_001 * file.token_size // 4096} at offset" in block
    sums_path(file.path).unlink()
    assert len(problems(file)) == 1
    assert problems(dataclasses.replace(file, sha256=None)) == []


@pytest.mark.parametrize("place", [0, 65_537, 99_998])
def test_tokens_outside_the_vocabulary(file: Expectation, place: int) -> None:
    sums_path(file.path).unlink()
    poke(file, place, 128)
    (problem,) = problems(dataclasses.replace(file, sha256=None))
    assert "a.ds holds 1 tokens outside model.vocab_size=128" in problem
    assert f"the first is token 128 at byte {place * file.token_size}" in problem


@pytest.mark.parametrize("document", [0, 500, 999])
def test_a_document_without_its_end(file: Expectation, document: int) -> None:
    sums_path(file.path).unlink()
    poke(file, document * 100 + 99, 5)
    (problem,) = problems(dataclasses.replace(file, sha256=None))
    assert "has 1 of 1,000 documents that do not end with the end-of-document token 0" in problem
    assert f"(document {document:,} ends with 5)" in problem
    assert problems(dataclasses.replace(file, sha256=None, eos=None)) == []


def test_every_end_is_looked_at(file: Expectation) -> None:
    (problem,) = problems(dataclasses.replace(file, eos=9))
    assert "has 1,000 of 1,000 documents that do not end" in problem


def test_an_index_that_does_not_rise(file: Expectation) -> None:
    index = file.path.with_name("a.ds.index")
    ends = np.fromfile(index, "<u8")
    ends[10] = 5
    index.write_bytes(ends.tobytes())
    (problem,) = problems(file)
    assert "a.ds has an index whose ends of documents do not rise" in problem


def test_checksums_of_another_file(file: Expectation) -> None:
    os.truncate(file.path, file.path.stat().st_size - 400)
    (problem,) = problems(file)
    assert "when its checksums were made" in problem and problem.startswith("data.sources.web.path=")
    sums_path(file.path).write_bytes(b"short")
    (problem,) = problems(file)
    assert "is no file of checksums, or cut off" in problem


def test_a_file_that_can_not_be_read(file: Expectation) -> None:
    file.path.unlink()
    (problem,) = problems(file)
    assert problem == f"{file.key}: {file.path} cannot be read: No such file or directory"


def test_progress_counts_for_the_very_same_file_alone(
    file: Expectation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = progress_path("files")
    assert path.is_relative_to(tmp_path / "cache")
    Progress(path).done(file, ["planted"])
    again = Progress(path)
    assert again.problems(file) == ["planted"]
    assert again.problems(dataclasses.replace(file, vocab_size=5)) is None
    os.utime(file.path, (1, 1))
    assert again.problems(file) is None
    again.forget()
    assert not path.exists()
