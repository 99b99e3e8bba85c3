"""What is staged, and in which order."""

import hashlib
from pathlib import Path

import pytest

from harness.config.schema import MixtureChange, SourceConfig, StageConfig
from harness.data import stage_plan
from harness.data.errors import DataError
from harness.data.order import SampleOrder
from harness.data.stage_paths import staged_path
from harness.data.stage_plan import first_uses, in_order_of_use, plan_files, shuffled
from harness.data.windows import Windows, open_sources
from tests.data.conftest import write_token_file
from tests.data.staging import SEQ_LEN, staging_config, write_manifest, write_source
from tests.data.test_tokenizer_files import write_tokenizer


def order_of(sources: dict[str, Path], stages: list[StageConfig], batch: int = 4) -> SampleOrder:
    opened = open_sources(list(sources.items()), SEQ_LEN)
    return SampleOrder(opened, stages, seed=3, seq_len=SEQ_LEN, global_batch_size=batch)


def test_token_files_with_all_that_lies_beside_them_and_nothing_else(tmp_path: Path) -> None:
    web = write_source(tmp_path / "web", files=2)
    (web / "000.ds.sums").write_bytes(b"sums")
    (web / "notes.txt").write_text("mine")
    files = plan_files(staging_config({"web": web}, tmp_path / "scratch"), tmp_path / "scratch")
    names = ["000.ds", "000.ds.index", "000.ds.metadata", "000.ds.sums", "001.ds", "001.ds.index", "001.ds.metadata"]
    assert [file.name for file in files] == ["manifest.json", *names]
    for file in files:
        assert file.copy == staged_path(tmp_path / "scratch", file.origin)
        assert file.size == Path(file.origin).stat().st_size
        assert (file.sha256 is None) == (file.name in ("000.ds.sums", "manifest.json"))


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_the_tokenizer_that_prepare_leaves_comes_first(tmp_path: Path, scheme: str) -> None:
    """A run knows by it how documents end. It is no token data, whatever its files are called."""
    web = write_source(tmp_path / "web", files=1, manifest=False)
    write_tokenizer(web / "tokenizer", {"a": 0})
    (web / "tokenizer" / "special_tokens_map.json").write_text("{}")
    (web / "tokenizer" / "vocab.ds").write_text("no tokens")
    (web / "best_fit-8-other").mkdir()
    write_manifest(web, ["tokenizer/tokenizer.json"])
    data = staging_config({"web": f"{scheme}{web}"}, tmp_path / "s")
    files = plan_files(data, tmp_path / "s")
    small = [
        "manifest.json",
        *(f"tokenizer/{name}" for name in ("special_tokens_map.json", "tokenizer.json", "vocab.ds")),
    ]
    assert [file.name for file in files] == [*small, "000.ds", "000.ds.index", "000.ds.metadata"]
    tokenizer = files[2]
    assert tokenizer.origin == f"{scheme}{web}/tokenizer/tokenizer.json"
    assert tokenizer.copy == files[4].copy.parent / "tokenizer" / "tokenizer.json"
    assert tokenizer.sha256 == hashlib.sha256((web / "tokenizer" / "tokenizer.json").read_bytes()).hexdigest()
    in_order = in_order_of_use(files, order_of({"web": web}, data.stages), 0)
    assert [file.name for file in in_order[:4]] == small


def test_a_source_that_is_one_file_brings_that_one_alone(tmp_path: Path) -> None:
    web = write_source(tmp_path / "web", files=2, manifest=False)
    files = plan_files(staging_config({"web": web / "001.ds"}, tmp_path / "s"), tmp_path / "s")
    assert [file.name for file in files] == ["001.ds", "001.ds.index", "001.ds.metadata"]


def test_only_sources_with_a_weight_from_here_on(tmp_path: Path) -> None:
    data = staging_config(
        {name: write_source(tmp_path / name, 1) for name in ("early", "late", "never")}, tmp_path / "s"
    )
    data.stages = [StageConfig("a", 10, {"early": 1.0}), StageConfig("b", None, {"late": 1.0, "never": 0.0})]
    assert {file.source for file in plan_files(data, tmp_path / "s", 9)} == {"early", "late"}
    assert {file.source for file in plan_files(data, tmp_path / "s", 10)} == {"late"}
    data.change_at = [MixtureChange(20, [StageConfig("c", None, {"never": 1.0})])]
    assert {file.source for file in plan_files(data, tmp_path / "s", 10)} == {"late", "never"}


def test_two_sources_of_the_same_files_bring_them_once(tmp_path: Path) -> None:
    web = write_source(tmp_path / "web", 1)
    files = plan_files(staging_config({"web": web, "again": web}, tmp_path / "s"), tmp_path / "s")
    assert len({file.copy for file in files}) == len(files) == 4


def test_all_sources_that_can_not_be_listed_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    data = staging_config({"gone": tmp_path / "gone", "empty": tmp_path / "empty"}, tmp_path / "s")
    data.sources["unset"] = SourceConfig(path="")
    data.stages[0].weights["unset"] = 1.0
    with pytest.raises(DataError) as error:
        plan_files(data, tmp_path / "s")
    lines = str(error.value).splitlines()
    assert lines[0] == f"data.sources.gone.path={tmp_path}/gone cannot be read: No such file or directory"
    assert lines[1].startswith(f"data.sources.empty.path={tmp_path}/empty holds no .ds files")
    assert lines[2].startswith("data.sources.unset.path is not set")


@pytest.mark.parametrize("step", [0, 3, 40])
def test_first_uses_are_those_of_the_order(tmp_path: Path, step: int) -> None:
    sources = {"web": write_source(tmp_path / "web", 3), "code": write_source(tmp_path / "code", 2, seed=1)}
    stages = [StageConfig("a", 30, {"web": 1.0}), StageConfig("b", None, {"web": 0.5, "code": 0.5})]
    order = order_of(sources, stages)
    uses = first_uses(order, step)
    windows = [Windows(source, SEQ_LEN) for source in order.sources]
    expected: dict[tuple[int, int], int] = {}
    for index in range(step * 4, 2000):
        source, window = order.sample(index)
        for piece in windows[source].pieces(window):
            expected.setdefault((source, piece.file), index // 4)
    assert uses == expected


def test_files_beyond_the_look_ahead_come_last_by_stage_and_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_plan, "LOOK_AHEAD_SAMPLES", 64)
    monkeypatch.setattr(stage_plan, "CHUNK_SAMPLES", 64)
    sources = {"now": write_source(tmp_path / "now", 2), "soon": tmp_path / "soon", "later": tmp_path / "later"}
    for name in ("soon", "later"):
        for file, size in (("small.ds", 100), ("large.ds", 3000)):
            write_token_file(sources[name], [[*range(1, size), 0]], file)
    stages = [
        StageConfig("a", 100, {"now": 1.0}),
        StageConfig("b", 200, {"soon": 1.0}),
        StageConfig("c", None, {"later": 1.0}),
    ]
    data = staging_config(sources, tmp_path / "s")
    data.stages = stages
    files = in_order_of_use(plan_files(data, tmp_path / "s"), order_of(sources, stages), 0)
    token_files = [f"{file.source}/{file.name}" for file in files if file.name.endswith(".ds")]
    assert sorted(token_files[:2]) == ["now/000.ds", "now/001.ds"]
    assert token_files[2:] == ["soon/large.ds", "soon/small.ds", "later/large.ds", "later/small.ds"]


def test_what_lies_beside_a_token_file_comes_right_before_it(tmp_path: Path) -> None:
    sources = {"web": write_source(tmp_path / "web", 3)}
    files = plan_files(staging_config(sources, tmp_path / "s"), tmp_path / "s")
    names = [file.name for file in in_order_of_use(files, order_of(sources, [StageConfig(weights={"web": 1.0})]), 0)]
    assert names[0] == "manifest.json" and len(names) == 10
    for begin in (1, 4, 7):
        stem = names[begin + 2]
        assert names[begin : begin + 3] == [f"{stem}.index", f"{stem}.metadata", stem]


def test_nodes_go_their_own_ways_through_the_same_files(tmp_path: Path) -> None:
    files = plan_files(staging_config({"web": write_source(tmp_path / "web", 9)}, tmp_path / "s"), tmp_path / "s")
    one, two = shuffled(files, "n1"), shuffled(files, "n2")
    assert one != two and shuffled(files, "n1") == one
    assert sorted(one, key=lambda f: f.name) == sorted(two, key=lambda f: f.name) == sorted(files, key=lambda f: f.name)
