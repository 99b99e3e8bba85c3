"""Token files in S3: the real client, over HTTP, to a server that keeps objects in memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
from moto.server import ThreadedMotoServer

from harness.data.__main__ import main
from harness.data.check import check_sources
from harness.data.checksums import write_checksums
from harness.data.order import open_order
from harness.data.stage import Stager
from harness.data.stage_plan import plan_files
from harness.data.stage_status import StageState
from tests.data.loading import Watcher, all_inputs, make, reading, small_order
from tests.data.staging import SEQ_LEN, contents, staging_config, write_source

VOCAB = 256


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[s3fs.S3FileSystem]:
    """A store that clients find as a user's would: by AWS's own environment variables."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "a secret that is never shown",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem()
    store.mkdir("bucket")
    yield store
    store.rm("bucket", recursive=True)
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def web(tmp_path: Path, s3: s3fs.S3FileSystem) -> Path:
    """Three files with index, metadata, checksums and manifest, here and in the bucket."""
    folder = write_source(tmp_path / "web")
    for file in folder.glob("*.ds"):
        write_checksums(file)
    s3.put(f"{folder}/", "bucket/web/", recursive=True)
    return folder


def test_a_launch_reads_outlines_and_a_stager_copies(web: Path, tmp_path: Path) -> None:
    data = staging_config({"web": "s3://bucket/web"}, tmp_path / "scratch")
    assert check_sources(data, VOCAB) == []
    outline = open_order(data, 8, outlines=True)
    files = plan_files(data, str(tmp_path / "scratch"))
    status = Stager(files, tmp_path / "scratch", tmp_path / "scratch/status").run()
    assert status.state is StageState.done, status.problems
    assert contents(files[0].copy.parent) == contents(web)
    assert open_order(data, 8).definition() == outline.definition()


def test_the_command_stages_from_s3(web: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["stage", "+exp=tiny", "data.sources.demo.path=s3://bucket/web", f"data.stage_to={tmp_path}/scratch",
             f"runs_dir={tmp_path}/runs", "data.eos_token_id=0", f"data.seq_len={SEQ_LEN}"]  # fmt: skip
    assert main([*typed, "--dry-run"]) == 0
    assert not (tmp_path / "scratch").exists()
    assert main(typed) == 0
    (copies,) = (tmp_path / "scratch").glob("web-*")
    assert contents(copies) == contents(web)
    assert main(typed) == 0
    assert "secret" not in capsys.readouterr().out


def test_an_object_cut_off_while_it_was_uploaded_is_named(web: Path, s3: s3fs.S3FileSystem, tmp_path: Path) -> None:
    s3.pipe_file("bucket/web/001.ds", (web / "001.ds").read_bytes()[:-2])
    problems = check_sources(staging_config({"web": "s3://bucket/web"}, tmp_path / "scratch"), VOCAB)
    assert problems and all(p.startswith("data.sources.web.path=s3://bucket/web: 001.ds ") for p in problems), problems


def test_a_bucket_that_is_not_there_is_named(s3: s3fs.S3FileSystem, tmp_path: Path) -> None:
    (problem,) = check_sources(staging_config({"web": "s3://no-such-bucket/web"}, tmp_path / "scratch"), VOCAB)
    assert problem.startswith("data.sources.web.path=s3://no-such-bucket/web cannot be read: ")
    assert "bucket" in problem.partition("read: ")[2]


def test_nobody_to_be_is_named(web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    (problem,) = check_sources(staging_config({"web": "s3://bucket/web"}, tmp_path / "scratch"), VOCAB)
    assert problem.startswith("data.sources.web.path=s3://bucket/web cannot be read: ")
    assert "credentials" in problem


def test_a_missing_file_is_read_from_s3(s3: s3fs.S3FileSystem, tmp_path: Path, quick_retries: None) -> None:
    order = small_order(tmp_path)
    shard = order.sources[0].files[0].path
    write_checksums(shard)
    s3.put(f"{shard.parent}/", "bucket/replica/", recursive=True)
    with make(order, stop_step=10) as loader:
        expected = all_inputs(list(loader))
    shard.unlink()
    watcher = Watcher()
    settings = reading(order, replicas={"web": ["s3://bucket/replica"]})
    with make(order, observer=watcher, reading=settings, stop_step=10) as loader:
        assert all_inputs(list(loader)) == expected
    assert ("s3://bucket/replica", "web") in watcher.keys
