"""Real token files, a real Slurm, and the loss sequence that every interrupted run must reproduce."""

import pydoc_data.topics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.runs import SLURM, Bench, Run, clean_env
from tests.slurm_cluster import SlurmCluster


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python's own documentation, tokenised by `harness.data prepare` with the vocabulary of exp=tiny."""
    folder = tmp_path_factory.mktemp("tokens")
    text = folder / "topics.txt"
    text.write_text("\n\n".join(pydoc_data.topics.topics.values()))
    command = [sys.executable, "-m", "harness.data", "prepare", "--input", str(text), "--output", str(folder / "out"),
               "--format", "text", "--vocab-size", "4096"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, text=True)
    return folder / "out"


@pytest.fixture(scope="session")
def local(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Runs on this machine, without Slurm."""
    return Bench(tmp_path_factory.mktemp("local-runs"), tokens, clean_env())


@pytest.fixture(scope="session")
def slurm(slurm_cluster: SlurmCluster, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Runs on the development cluster."""
    return Bench(tmp_path_factory.mktemp("slurm-runs"), tokens, clean_env(slurm_cluster.env))


@pytest.fixture(scope="session")
def uninterrupted(slurm: Bench) -> dict[int, float]:
    """Loss by step of a run that nothing disturbs."""
    slurm.launch("uninterrupted", *SLURM)
    run: Run = slurm.run("uninterrupted")
    run.wait_for_end()
    return run.losses()
