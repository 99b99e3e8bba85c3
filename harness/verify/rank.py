"""One rank of a small run: trains a few steps exactly as `harness.train` does, and leaves what it saw in files."""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from harness.checkpoint.folders import complete_steps
from harness.checkpoint.restore import restore
from harness.optim.optimizer import Optimizer
from harness.optim.shards import local
from harness.parallel.local import NO_COPIES, Copies, own_part
from harness.run.files import write_json
from harness.run.folder import RunFolder
from harness.train.process import Place
from harness.train.rank import as_started
from harness.train.setup import Trainer, set_up
from harness.verify.compare import EVIDENCE, FAILED

POLL_SECONDS = 0.1


def measure(folder: Path, reference: Path | None) -> None:
    """Train the run in `folder` as the rank that the environment says. Collective over its ranks.

    Then save a checkpoint, and with `reference` (the folder of a run that may still be training) go on from that run's
    checkpoint. The process ends with this: its groups are left to the end of it, which takes less time.
    """
    run, place = RunFolder(folder), Place.from_environment(os.environ)
    with tempfile.TemporaryDirectory(prefix="harness-board-") as boards:
        trainer = set_up(run, as_started(run.load_config(), place), place, Path(boards))
        with trainer.loader:
            _Measurement(trainer).take(reference)


class _Measurement:
    """Everything that one rank writes down."""

    def __init__(self, trainer: Trainer) -> None:
        self._t = trainer
        self._folder = trainer.run.path / EVIDENCE
        self._folder.mkdir(exist_ok=True)

    def take(self, reference: Path | None) -> None:
        t, stepper = self._t, self._t.stepper
        parameters = stepper.model.parameters
        record: dict[str, Any] = {"names": list(parameters), "parts": _parts(parameters)}
        self._keep("initial", parameters)
        stepper.optimizer = _Watched(stepper.optimizer, self._keep_gradients)
        pending = [
            stepper.run(batch, t.config.optim.lr, stop=False, fenced=False, with_statistics=False) for batch in t.loader
        ]
        results = [step.result() for step in pending]
        self._keep("state", t.state)
        record |= {"losses": [r.loss for r in results], "norms": [r.grad_norm for r in results]}
        record["parts_after"] = _parts(parameters)
        t.saver.save(t.state, len(results), len(results) * stepper.tokens_per_step)
        if (saved := t.saver.wait()) is not None and saved.error is not None:
            raise RuntimeError(f"the checkpoint of step {saved.step} could not be saved: {saved.error}")
        if reference is not None:
            self._go_on_from(RunFolder(reference))
        write_json(self._folder / f"rank-{t.place.rank:05d}.json", record)
        dist.barrier()

    def _go_on_from(self, reference: RunFolder) -> None:
        for tensor in self._t.state.values():
            local(tensor).fill_(-1)  # what is not read must not look as if it were
        while not complete_steps(reference.checkpoints_dir):
            if (reference.path / FAILED).exists():
                raise RuntimeError("the run in one process failed")
            time.sleep(POLL_SECONDS)
        saver, reports = self._t.saver, self._t.reports
        restore(reference, self._t.state, identity=saver.identity, verify=True, group=saver.group, reports=reports)
        self._keep("restored", self._t.state)

    def _keep_gradients(self, parameters: Mapping[str, torch.Tensor]) -> None:
        self._keep("gradients", {name: p.grad for name, p in parameters.items() if p.grad is not None})

    def _keep(self, kind: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Collective over the ranks of a stage; the first of them writes."""
        full = {name: _whole(tensor) for name, tensor in tensors.items()}
        if self._t.place.rank % self._t.grid.stage_size == 0:
            save_file(full, self._folder / f"{kind}-{self._t.grid.pp_rank(self._t.place.rank)}.safetensors")


Look = Callable[[Mapping[str, torch.Tensor]], None]


class _Watched(Optimizer):
    """An optimizer whose gradients somebody looks at before the first update."""

    def __init__(self, optimizer: Optimizer, look: Look) -> None:
        self.parameters, self.state, self.device = optimizer.parameters, optimizer.state, optimizer.device
        self._optimizer = optimizer
        self._look: Look | None = look

    def step(self, lr: torch.Tensor, scale: torch.Tensor, skip: torch.Tensor, copies: Copies = NO_COPIES) -> None:
        if self._look is not None:
            self._look(self.parameters)
            self._look = None
        self._optimizer.step(lr, scale, skip, copies)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().to("cpu", copy=True).contiguous()


def _parts(parameters: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, str]]:
    """By parameter: which part this rank holds, and a digest of its numbers. Empty parts are left out."""
    found = {}
    for name, parameter in parameters.items():
        held = local(parameter.detach()).cpu().contiguous()
        if held.numel():
            digest = hashlib.blake2b(held.numpy().tobytes(), digest_size=16).hexdigest()
            found[name] = (str([(part.start, part.stop) for part in own_part(parameter)]), digest)
    return found
