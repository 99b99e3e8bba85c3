"""Tells Prometheus' discovery where this node's /metrics is, for as long as the agent lives."""

import contextlib
import json
import logging
import re
import threading
import time
from pathlib import Path

from harness.run.files import write_atomic

log = logging.getLogger(__name__)

RENEW_SECONDS = 5.0
CLOSE_SECONDS = 5.0


class TargetRegistration:
    """One small file per run, attempt and node, renewed until `close`.

    TARGETS_DIR/<run>.<attempt>.<node>.json holds {"targets": ["host:port"], "labels": {run, attempt, slurm_job_id, node},
    "lease": Unix time of the last renewal}. Nothing here raises: a folder that is gone or full is logged once and tried
    again at the next renewal.
    """

    def __init__(
        self,
        targets_dir: Path,
        address: tuple[str, int],
        *,
        run: str,
        attempt: int,
        node: str,
        slurm_job_id: str = "",
        renew_seconds: float = RENEW_SECONDS,
    ) -> None:
        """Register `address`, which Prometheus must be able to reach, and keep renewing it."""
        host, port = address
        self._target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._labels = {"run": run, "attempt": str(attempt), "slurm_job_id": slurm_job_id, "node": node}
        self.path = targets_dir / re.sub(r"[^\w.,=-]", "_", f"{run}.{attempt}.{node}.json")
        self._renew_seconds = renew_seconds
        self._failing = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="targets", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Withdraw the target: first to an empty list, which Prometheus obeys at once, then the file goes."""
        self._stop.set()
        self._thread.join(timeout=CLOSE_SECONDS)
        if self._thread.is_alive():
            log.warning("%s hangs; the target is left to its lease", self.path)

    def _renew(self) -> None:
        while True:
            self._write([self._target])
            if self._stop.wait(self._renew_seconds):
                break
        self._write([])
        with contextlib.suppress(OSError):  # `_write` has told what is wrong with the folder
            self.path.unlink(missing_ok=True)

    def _write(self, targets: list[str]) -> None:
        record = {"targets": targets, "labels": self._labels, "lease": time.time()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, json.dumps(record) + "\n")
        except OSError as error:
            if not self._failing:
                log.warning("could not register in %s, will go on trying: %s", self.path, error)
            self._failing = True
        else:
            self._failing = False
