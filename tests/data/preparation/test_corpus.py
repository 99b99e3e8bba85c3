import re
import subprocess
from pathlib import Path

import pytest

import harness.data.preparation.corpus as corpus
from harness.data.__main__ import main
from tests.conftest import require


@pytest.fixture
def no_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus.shutil, "which", lambda command: None)


def test_without_a_package_python_brings_its_own(
    tmp_path: Path, no_apt: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["corpus", "--output", f"{tmp_path}/corpus"]) == 0
    sources = (tmp_path / "corpus" / "SOURCES.txt").read_text()
    assert "pydoc_data.topics" in sources and "PSF-2.0" in sources
    files = list((tmp_path / "corpus" / "text").glob("*.txt"))
    assert sum(file.stat().st_size for file in files) > 300_000
    assert f"{len(files)} files" in sources
    assert "assignment" in (tmp_path / "corpus" / "text" / "assignment.txt").read_text().lower()
    capsys.readouterr()
    assert main(["corpus", "--output", f"{tmp_path}/corpus"]) == 0
    assert "is already there: Help topics of Python" in capsys.readouterr().out
    assert [entry.name for entry in tmp_path.iterdir()] == ["corpus"]


def test_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package in Debian's format, built here; only apt-get is replaced, on a machine without package lists."""
    require("dpkg-deb", "apt-get")
    run, commands = corpus._run, []

    def build(command: list[str], folder: Path) -> bool:
        if command[0] != "apt-get":
            return run(command, folder)
        commands.append(command)
        if not any("Dir::State::Lists" in option for option in command):
            return False  # a fresh machine: no lists of packages
        if command[-1] == "update":
            return True
        package = command[-1]
        if package == corpus.PACKAGES[0]:
            return False  # not on this release
        tree = folder / "build"
        texts = tree / "usr/share/doc" / package.removesuffix("-doc") / "html/_sources"
        for name in ("DEBIAN", f"usr/share/doc/{package}"):
            (tree / name).mkdir(parents=True)
        (texts / "library").mkdir(parents=True)
        (tree / "DEBIAN/control").write_text(
            f"Package: {package}\nVersion: 3.13.1-2\nArchitecture: all\nMaintainer: nobody <n@example.org>\nDescription: x\n"
        )
        (tree / f"usr/share/doc/{package}/copyright").write_text("PSF")
        (texts / "library" / "os.rst.txt").write_text("The os module\n")
        (texts / "about.rst.txt").write_text("About\n")
        (texts / "blank.rst.txt").write_text("\n")
        target = folder / f"{package}_3.13.1-2_all.deb"
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(target)], check=True, capture_output=True
        )
        return True

    monkeypatch.setattr(corpus, "_run", build)
    said = corpus.make_corpus(tmp_path / "corpus")
    assert "Package python3.13-doc, version 3.13.1-2, licence PSF-2.0" in said
    assert {file.name for file in (tmp_path / "corpus" / "text").iterdir()} == {"about.txt", "library-os.txt"}
    assert (tmp_path / "corpus" / "COPYRIGHT").read_text() == "PSF"
    assert [command[-1] for command in commands].count("update") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["corpus"]


def test_stops_at_the_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_apt: None) -> None:
    monkeypatch.setattr(corpus, "MAX_BYTES", 50_000)
    corpus.make_corpus(tmp_path / "corpus")
    size = sum(file.stat().st_size for file in (tmp_path / "corpus" / "text").iterdir())
    assert 40_000 < size <= 50_000
    assert re.search(
        r"\. [1-9]\d* more texts are left out: blank, or beyond 0 MB\.", (tmp_path / "corpus/SOURCES.txt").read_text()
    )


def test_two_texts_of_one_name_are_both_kept(tmp_path: Path) -> None:
    assert corpus._write_texts(iter([("a-b", "one"), ("a-b", "two"), ("c", " ")]), tmp_path) == (2, 1)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a-b.txt": "one", "a-b-1.txt": "two"}


def test_leaves_other_folders_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").touch()
    assert main(["corpus", "--output", str(tmp_path)]) == 2
    assert "exists and is no corpus made by this command" in capsys.readouterr().err


def test_output_that_cannot_be_made(tmp_path: Path, no_apt: None, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["corpus", "--output", f"{tmp_path}/file/corpus"]) == 2
    assert "cannot write it: " in capsys.readouterr().err
