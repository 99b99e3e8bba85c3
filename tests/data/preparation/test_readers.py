from pathlib import Path

import pytest

import harness.data.preparation.readers as readers
from harness.data.preparation.inputs import find_inputs


def test_text_without_paragraphs_is_cut_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_CHARS", 10_000)
    (tmp_path / "in.txt").write_text("".join(f"{number} " for number in range(5000)))
    reader = readers.make_reader(find_inputs(str(tmp_path / "in.txt"), None, "text"), tmp_path / "scratch")
    assert [len(document.text) for document in reader.run(None, 0, 1)] == [10_000, 10_000, 3_889]
