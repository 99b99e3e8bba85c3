"""Which node of which job: from Slurm's variables, or from the local controller's."""

import pytest

from harness import slurm
from harness.run.node import this_node


def test_on_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "expand_nodes", lambda text: text.split(","))
    node = this_node(
        {"SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURMD_NODENAME": "localhost", "SLURM_STEP_NODELIST": "localhost",
         "SLURM_JOB_NODELIST": "n1,localhost",
         "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "3"}
    )  # fmt: skip
    assert (node.index, node.is_head, node.attempt_key, node.on_slurm) == (1, False, "7.3", True)


def test_local() -> None:
    node = this_node({"SUBMITIT_LOCAL_JOB_ID": "4711"})
    assert (node.is_head, node.attempt_key, node.address, node.on_slurm) == (True, "4711.0", "127.0.0.1", False)
