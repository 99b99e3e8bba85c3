import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from harness.data.__main__ import main
from harness.data.preparation.prepare import Request, prepare
from harness.data.report.measure import measure, near_duplicates, repeated_phrases
from harness.data.report.page import percent, short
from harness.data.token_files import open_source
from tests.data.conftest import write_token_file
from tests.data.preparation.conftest import FRENCH, mixed_documents, story, write_documents

BOILERPLATE = "All rights reserved by the owners of this page. Contact the editors for a copy."


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Mixed documents as they are, and without exact duplicates."""
    root = tmp_path_factory.mktemp("report")
    texts = write_documents(root / "in", [f"{text}\n{BOILERPLATE}" for text in mixed_documents()])
    recipe = root / "recipe.yaml"
    recipe.write_text("exact_dedup: true")
    prepare(Request(str(texts), root / "raw", vocab_size=500))
    prepare(Request(str(texts), root / "clean", tokenizer=str(root / "raw" / "tokenizer"), recipe=recipe))
    return {"raw": root / "raw", "clean": root / "clean"}


def test_figures(sources: dict[str, Path]) -> None:
    raw, clean = (measure(open_source(name, path), 1000) for name, path in sources.items())
    assert raw.documents == raw.sampled == 60 and clean.documents == 54
    assert raw.lengths is not None and sum(raw.lengths.histogram) == 60
    assert raw.lengths.mean == pytest.approx(raw.tokens / 60)
    assert raw.exact_duplicates == pytest.approx(6 / 60) and clean.exact_duplicates == 0
    assert raw.near_duplicates == pytest.approx((5 + 3 + 2) / 60)  # the short ones and the French ones are alike, too
    french = sum(len(FRENCH) * 8 for _ in range(3)) / sum(
        len(text) + len(BOILERPLATE) + 1 for text in mixed_documents()
    )
    assert raw.languages["fr"] == pytest.approx(french, abs=0.02)
    assert next(iter(raw.languages)) == "en"
    assert raw.repeated[0] == (BOILERPLATE.lower(), 1.0)
    assert raw.steps == [] and [step["step"] for step in clean.steps] == ["read", "exact_dedup"]
    assert raw.notes == clean.notes == []


def test_a_sample_is_the_same_each_time(sources: dict[str, Path]) -> None:
    first, second = (measure(open_source("raw", sources["raw"]), 20) for _ in range(2))
    assert first == second and first.sampled == 20


def test_near_duplicates() -> None:
    texts = [story(seed) for seed in range(10)]
    assert near_duplicates(texts) == 0
    assert near_duplicates([*texts, f"Well.\n{texts[0]}", f"Oh.\n{texts[0]}"]) == 2


def test_repeated_phrases() -> None:
    texts = [f"{number} one two three four five six seven eight {number}" for number in range(3)] + ["too short", ""]
    assert repeated_phrases(texts) == [("one two three four five six seven eight", 3)]
    assert repeated_phrases(["a b", ""]) == []
    assert repeated_phrases(["a b c d e f g"]) == []


class Page(HTMLParser):
    """What a page refers to, its headings, and whether tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings = re.findall("<h2>(.*?)</h2>", text)
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert not {"src", "href"} & {name for name, _ in attributes}, "needs something else"
        if tag not in ("meta", "line", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "rect"):
            assert self.open.pop() == tag


def test_the_page(tmp_path: Path, sources: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "deep" / "report.html"
    command = ["report", str(sources["raw"]), f"<i>&={sources['clean']}", "--output", str(output)]
    assert main(command) == 0
    assert f"{output}: 2 source(s)" in capsys.readouterr().out
    text = output.read_text()
    page = Page(text)
    assert page.open == []
    assert page.headings == [
        "Sources",
        "Length of documents",
        "Languages",
        "Duplicates",
        "What preparation dropped",
        "What repeats itself",
    ]
    assert "&lt;i&gt;&amp;" in text and "<i>&" not in text and "http" not in text
    assert [entry["name"] for entry in json.loads(output.with_suffix(".json").read_text())] == ["raw", "<i>&"]


def test_files_of_others(tmp_path: Path) -> None:
    """No index, no tokenizer: what can be known is shown, and what cannot is said."""
    write_token_file(tmp_path / "bare", [[1, 2, 3]] * 100, index=False)
    write_token_file(tmp_path / "foreign", [[1, 2, 3]] * 100, tokenizer="some/tokenizer")
    bare, foreign = (measure(open_source(name, tmp_path / name), 10) for name in ("bare", "foreign"))
    assert bare.tokens == 300 and bare.documents is None
    assert bare.notes == ["no .index files, which say where documents end: lengths and text are not measured"]
    assert foreign.documents == 100 and foreign.lengths is not None and foreign.lengths.median == 3
    assert foreign.notes == ["its tokenizer (some/tokenizer) is not on this machine: text is not measured"]
    output = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "bare"), str(tmp_path / "foreign"), "--output", str(output)]) == 0
    assert Page(output.read_text()).headings == ["Sources", "Length of documents"]


def test_the_sources_of_a_run(tmp_path: Path, sources: dict[str, Path]) -> None:
    output = tmp_path / "report.html"
    overrides = ["+exp=tiny", f"data.sources.demo.path={sources['raw']}"]
    assert main(["report", *overrides, "--output", str(output), "--sample", "5"]) == 0
    assert [entry["name"] for entry in json.loads(output.with_suffix(".json").read_text())] == ["demo"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--output", "r.html"], "data.sources.nowhere.path=nowhere does not exist"),
        (["a", "b/a", "--output", "r.html"], "b/a: a is named twice. Tell them apart with NAME=PATH."),
        (["a", "--output", "r.pdf"], "--output r.pdf: must end in .html"),
        (["a", "--output", "r.html", "--sample", "0"], "--sample 0: must be at least 1"),
        (["+exp=nothing", "--output", "r.html"], "nothing"),
    ],
)
def test_bad_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_numbers() -> None:
    assert [short(value) for value in (0, 7, 999, 1234, 5_300_000, 11.1e12)] == [
        "0",
        "7",
        "999",
        "1.23k",
        "5.3M",
        "11.1T",
    ]
    assert [percent(value) for value in (None, 0.0, 1.0, 0.0123, 0.123)] == ["–", "0%", "100%", "1.23%", "12.3%"]
