"""Joins the ranks and makes sure that what they compute on is what the config needs."""

import os

import torch
import torch.distributed as dist

from harness.config.schema import Precision, RootConfig
from harness.train.exits import BadConfig
from harness.train.process import Place, threads_per_rank

FP8_CAPABILITY = (8, 9)
"""First compute capability with FP8 matrix units (Ada; Hopper is 9.0)."""


def init_distributed(config: RootConfig, place: Place) -> torch.device:
    """Join the other ranks; the device that this one computes on.

    Raises RuntimeError where this rank's GPU can't be used, BadConfig where the GPUs do not fit the config.
    """
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA's libraries start
        torch.use_deterministic_algorithms(True)
    threads = threads_per_rank(place.local_world_size)
    if threads is not None:
        torch.set_num_threads(threads)
    if not config.cluster.gpus_per_node:
        dist.init_process_group("gloo")
        return torch.device("cpu")
    if torch.cuda.device_count() <= place.local_rank:
        raise RuntimeError(
            f"{place.node}: rank {place.rank} needs GPU {place.local_rank}, torch sees {torch.cuda.device_count()}"
        )
    device = torch.device("cuda", place.local_rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    problem = gpu_problem(config.train.precision, _gpus_of_all(place.node, device))
    if problem is not None:
        raise BadConfig(problem)
    return device


def gpu_problem(precision: Precision, gpus: list[tuple[str, str, tuple[int, int]]]) -> str | None:
    """Why a job can't run on these (node, GPU name, compute capability) of its ranks; None where it can."""
    nodes: dict[str, set[str]] = {}
    for node, name, _ in gpus:
        nodes.setdefault(name, set()).add(node)
    if len(nodes) > 1:
        found = "; ".join(f"{name} on {', '.join(sorted(where))}" for name, where in sorted(nodes.items()))
        return (
            f"the job mixes GPU types, and every step would wait for the slowest: {found}. Keep one type: "
            "cluster.exclude=[NODE,...], cluster.partition or cluster.sbatch.constraint"
        )
    _, name, capability = gpus[0]
    if precision is Precision.fp8 and capability < FP8_CAPABILITY:
        return f"train.precision=fp8: {name} (compute capability {capability[0]}.{capability[1]}) has no FP8 units; set bf16"
    return None


def _gpus_of_all(node: str, device: torch.device) -> list[tuple[str, str, tuple[int, int]]]:
    own = (node, torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
    gpus = [own] * dist.get_world_size()
    dist.all_gather_object(gpus, own)
    return gpus
