"""Data sets to stage."""

import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from harness.config.schema import DataConfig, SourceConfig, StageConfig
from tests.data.conftest import write_token_file

SEQ_LEN = 16


def write_source(folder: Path, files: int = 3, tokens: int = 4000, seed: int = 0, manifest: bool = True) -> Path:
    """A folder of token files with index, metadata and, if asked for, the manifest that `prepare` leaves."""
    draw = np.random.default_rng(seed)
    for number in range(files):
        document = [*draw.integers(1, 200, tokens // 10 - 1).tolist(), 0]
        write_token_file(folder, [document] * 10, f"{number:03d}.ds")
    if manifest:
        write_manifest(folder)
    return folder


def write_manifest(folder: Path, deeper: list[str] | None = None) -> None:
    """`deeper`: files in folders below it, by their paths from it."""
    own = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "manifest.json")
    entries = [
        {
            "name": str(path.relative_to(folder)),
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in [*own, *(folder / name for name in deeper or [])]
    ]
    (folder / "manifest.json").write_text(json.dumps({"files": entries}))


def staging_config(sources: Mapping[str, Path | str], stage_to: Path, **settings: object) -> DataConfig:
    """One stage that weights all sources, folders or URLs, alike."""
    return DataConfig(
        sources={name: SourceConfig(path=str(path)) for name, path in sources.items()},
        stages=[StageConfig(weights={name: 1.0 for name in sources})],
        seq_len=SEQ_LEN,
        eos_token_id=0,
        stage_to=str(stage_to),
        **settings,  # type: ignore[arg-type]
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of every file right in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A file system of its own at `place`, in memory. Skips the test where nothing may be mounted."""
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True
    ).returncode:
        pytest.skip("needs root to mount a small file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
