"""`python -m harness.data check` as it is typed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.data import full_check
from harness.data.__main__ import main
from tests.data.conftest import write_token_file
from tests.data.staging import write_manifest, write_source


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "harness" / "data-check"


def check(capsys: pytest.CaptureFixture[str], web: Path | str, *more: str, code: int = 0) -> str:
    arguments = ["check", "+exp=tiny", f"data.sources.demo.path={web}", "data.eos_token_id=0", "data.seq_len=16",
                 "model.vocab_size=256", *more]  # fmt: skip
    assert main(arguments) == code
    return capsys.readouterr().out


def test_sound_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = check(capsys, write_source(tmp_path / "web")).splitlines()
    assert said[0].split() == [
        "source",
        "files",
        "tokens",
        "size",
        "on",
        "disk",
        "local",
        "sequences",
        "wasted",
        "reached",
    ]
    assert said[1].split()[:5] == ["demo", "3", "12.00", "k", "24.0"] and said[1].endswith("every sequence")
    assert said[-1].endswith("nothing is wrong")


def test_token_files_further_down_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run reads those of the folder itself alone."""
    web = write_source(tmp_path / "web")
    below = write_token_file(tmp_path / "elsewhere", [[1, 2, 0]] * 400)
    (web / "more").symlink_to(below.parent)
    said = check(capsys, web)
    assert f"1 token file(s) in folders below are not read (more/{below.name}, ...). Name them as sources" in said
    assert "folders below" not in check(capsys, web / "000.ds")


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A truncated shard, one with an index of another, one of another width; the good one is still looked at."""
    web = write_source(tmp_path / "web", 4, manifest=False)
    os.truncate(web / "000.ds", 7001)
    (web / "001.ds.index").write_bytes((5).to_bytes(8, "little"))
    said = check(capsys, web, code=1)
    assert "000.ds has 7001 bytes, no multiple of 2 bytes per token" in said
    assert "001.ds holds 4000 tokens of 2 bytes, but its index ends at 5" in said
    assert "2 problems" in said
    write_token_file(web, [[1, 2, 0]] * 400, "002.ds", width=4)
    assert "mixes token widths: 000.ds has 2 bytes per token" in check(capsys, web, code=1)
    assert f"data.sources.demo.path={tmp_path}/none does not exist" in check(capsys, tmp_path / "none", code=1)


def test_what_only_a_full_check_sees(tmp_path: Path, capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    web = write_source(tmp_path / "web", 3, tokens=200_000)
    data = bytearray((web / "001.ds").read_bytes())
    data[10_000:10_002] = (300).to_bytes(2, "little")
    (web / "001.ds").write_bytes(data)
    check(capsys, web)
    said = json.loads(check(capsys, web, "--full", "--json", code=1))
    sha, tokens = said["problems"]
    assert "001.ds does not have the sha256" in sha and "token 300 at byte 10000" in tokens
    assert said["sources"][0]["windows"] > 0 and said["sources"][0]["reached"] == "every sequence"
    assert list(cache.glob("*")) == []  # complete: the next one looks at everything again
    (web / "001.ds").write_bytes(bytes(len(data)))
    write_manifest(web)
    assert "documents that do not end" not in check(capsys, web, "--full")


def test_an_interrupted_check_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = write_source(tmp_path / "web", 6, tokens=20_000)
    (web / "000.ds").write_bytes(b"\1\0" * 20_000)
    real, seen = full_check.check_file, []

    def interrupted(file: full_check.Expectation, told: object) -> list[str]:
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(file.path.name)
        return real(file, told)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(full_check, "check_file", interrupted)
        check(capsys, web, "--full", "--threads", "1", code=130)
    assert seen == ["000.ds", "001.ds", "002.ds"] and len(list(cache.glob("*"))) == 1
    seen.clear()
    monkeypatch.setattr(full_check, "check_file", lambda file, told: seen.append(file.path.name) or real(file, told))
    said = check(capsys, web, "--full", "--threads", "1", code=1)
    assert seen == ["003.ds", "004.ds", "005.ds"]
    assert "3 files were gone through before, by a check that was interrupted" in said
    assert "000.ds does not have the sha256" in said
    assert list(cache.glob("*")) == []


def test_released_files_are_told_and_brought_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    web = write_source(tmp_path / "web", 2, tokens=100_000, manifest=False)
    size = (web / "000.ds").stat().st_size
    (web / "000.ds").write_bytes(b"")
    os.truncate(web / "000.ds", size)
    os.sync()
    said = check(capsys, web, "data.eos_token_id=0")
    assert "data.sources.demo: 50" in said and "% is local, 1 of 2 files are not, or not all" in said
    assert "1 of 2 files" in check(capsys, web, "--warm")  # a sparse file stays sparse, but it was read through


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    web = write_source(tmp_path / "web", 1)
    check(capsys, web, "train.stepz=3", code=2)
    check(capsys, web, "--threads", "0", code=2)
    with pytest.raises(SystemExit) as error:
        check(capsys, web, "--fool")
    assert error.value.code == 2


def test_options_may_stand_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    web = write_source(tmp_path / "web", 1)
    assert main(["check", "--json", "+exp=tiny", f"data.sources.demo.path={web}", "--threads", "2", "data.eos_token_id=0",
                 "data.seq_len=16"]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["problems"] == []


def test_help_needs_nothing_heavy() -> None:
    code = "import sys\nfrom harness.data.__main__ import main\ntry: main([sys.argv[1], '--help'])\nexcept SystemExit: pass\nprint(sorted({'torch','hydra','omegaconf','numpy','fsspec'} & set(sys.modules)))"
    for command in ("check", "stage"):
        done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("packing", "share"), [("chunk", 3 / 20), ("best_fit", 1 - 20 / 34)])
def test_what_packing_wastes(tmp_path: Path, capsys: pytest.CaptureFixture[str], packing: str, share: float) -> None:
    """Two documents of 10 tokens: cut at 17 they leave 1 window and 3 of 20 tokens, packed 14 of 34 places."""
    write_token_file(tmp_path / "web", [[*range(1, 10), 0]] * 2)
    for path in (str(tmp_path / "web"), f"file://{tmp_path}/web"):
        more = [
            f"data.packing={packing}",
            f"data.packing_cache={tmp_path}/packing",
            f"data.stage_to={tmp_path}/scratch",
        ]
        (source,) = json.loads(check(capsys, path, *more, "--json"))["sources"]
        assert source["wasted"] == pytest.approx(share)
        assert f" {share:.2%} " in check(capsys, path, *more)


def test_a_source_in_an_object_store_is_looked_at_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its size and what it holds are known without a copy; what a file system holds of it is not."""
    url = f"file://{write_source(tmp_path / 'web')}"
    said = check(capsys, url, f"data.stage_to={tmp_path}/scratch").splitlines()
    assert said[1].split() == ["demo", "3", "12.00", "k", "24.0", "kB", "-", "-", "747", "0.38%", "every", "sequence"]
    assert said[2].startswith(
        f"  - data.sources.demo.path={url}: in an object store, where headers and a few blocks were"
    )
    os.truncate(tmp_path / "web" / "001.ds", 7001)
    said = check(capsys, url, f"data.stage_to={tmp_path}/scratch", code=1)
    assert f"data.sources.demo.path={url}: 001.ds has 7001 bytes, no multiple of 2 bytes per token" in said
    assert not (tmp_path / "scratch").exists()
