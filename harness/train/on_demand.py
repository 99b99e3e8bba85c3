"""Records a few steps when somebody asks for it by a file in the run folder, without a restart.

    touch RUN/profile                            trace of the next 3 steps of rank 0
    echo 5 > RUN/profile                         of 5 steps
    echo all > RUN/profile                       of every rank
    echo "ranks=0,8 steps=5" > RUN/profile       of some ranks
    touch RUN/memory_snapshot                    GPU allocations of the next 2 steps of rank 0; the same words

What was recorded is in RUN/profiles. Only rank 0 looks for these files, renames what it finds to NAME.done, and writes down
for the others what was asked for; they look there now and then, so that a thousand ranks are no load on the file system.
Nothing that goes wrong here ends training.
"""

import dataclasses
import math
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.run.files import read_json, write_json
from harness.run.folder import RunFolder
from harness.train.recorders import MemoryRecorder, Recorder, TraceRecorder

POLL_SECONDS = 2.0
"""Between rank 0's looks for a request."""
OTHERS_POLL_SECONDS = 10.0
"""Between the other ranks' looks for what rank 0 has written down."""
NOTICE_SECONDS = 15.0
"""About how far ahead the first step lies where other ranks take part: time enough for all of them to have looked."""
NOTICE_STANDS_SECONDS = 300.0
"""How long that stays there: some network file systems show a new file to other nodes a minute late."""
MAX_STEPS = 20
DEFAULT_STEPS = {"profile": 3, "memory_snapshot": 2}
_ENDINGS = {"profile": ".json.gz", "memory_snapshot": "-memory.pickle"}
_NOTICE = "request.json"


@dataclass(frozen=True)
class Request:
    """What to record."""

    kind: str
    """Key of DEFAULT_STEPS."""
    steps: int
    ranks: list[int] | None
    """None: all."""
    first_step: int = 0
    id: str = ""

    def includes(self, rank: int) -> bool:
        return self.ranks is None or rank in self.ranks


def parse(kind: str, text: str) -> Request:
    """What a request file says: a number of steps, `all`, `ranks=0,8`, `steps=5`, in any order; nothing: the defaults.

    More than MAX_STEPS are MAX_STEPS. Raises ValueError that says what would be right."""
    steps, ranks = DEFAULT_STEPS[kind], [0]
    everybody = False
    try:
        for word in text.split():
            key, _, value = word.rpartition("=")
            if word in ("all", "ranks=all"):
                everybody = True
            elif key == "ranks":
                ranks = sorted({int(rank) for rank in value.split(",")})
            elif key in ("", "steps"):
                steps = int(value)
            else:
                raise ValueError(word)
        if steps < 1 or min(ranks) < 0:
            raise ValueError(text)
    except ValueError:
        raise ValueError(
            f'{kind} says {text.strip()!r}: write nothing, or a number of steps up to {MAX_STEPS}, or "all", or for example '
            f'"ranks=0,8 steps=5"'
        ) from None
    return Request(kind, min(steps, MAX_STEPS), None if everybody else ranks)


class OnDemand:
    """One rank's part. `step_begin` and `step_end` cost nothing but a look at the clock while nobody asks."""

    def __init__(self, run: RunFolder, rank: int, device: torch.device) -> None:
        self._run = run
        self._rank = rank
        self._device = device
        self._notice = run.profiles_dir / _NOTICE
        self._poll_seconds = POLL_SECONDS if rank == 0 else OTHERS_POLL_SECONDS
        self._polled = self._noticed = time.monotonic()
        self._steps_since_poll = 0
        self._request: Request | None = None
        self._seen = ""
        self._recorder: Recorder | None = None
        self._recorded: list[int] = []
        if rank == 0:
            self._remove_notice()  # of a process that died

    @property
    def recording(self) -> bool:
        """Whether the step under way is being recorded."""
        return self._recorder is not None

    def step_begin(self, step: int) -> None:
        """Called before each step: looks for a request, and starts to record where `step` is the one to start with."""
        try:
            if self._request is None:
                self._poll(step)
            if self._request is not None and self._recorder is None and step >= self._request.first_step:
                self._run.profiles_dir.mkdir(exist_ok=True)
                self._recorder = self._start(self._request.kind)
            if self._recorder is not None:
                self._recorder.step_begin(step)
                self._recorded.append(step)
        except Exception as error:  # a failed recording must not end training
            self._give_up(error)

    def step_end(self, step: int) -> None:
        """Called after each step: writes the recording after its last one, which takes seconds."""
        try:
            if self._recorder is not None and self._request is not None:
                self._recorder.step_end()
                if len(self._recorded) >= self._request.steps:
                    self._finish()
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        """Write what there is of a recording that the run's end cuts short."""
        try:
            if self._recorder is not None:
                self._finish()
        except Exception as error:
            self._give_up(error)
        if self._rank == 0:
            self._remove_notice()

    def _poll(self, step: int) -> None:
        self._steps_since_poll += 1
        waited = time.monotonic() - self._polled
        if waited < self._poll_seconds:
            return
        step_seconds = waited / self._steps_since_poll
        self._polled, self._steps_since_poll = time.monotonic(), 0
        if self._rank != 0:
            self._request = self._hear()
            return
        if self._polled - self._noticed > NOTICE_STANDS_SECONDS:
            self._noticed = math.inf
            self._remove_notice()
        for kind in DEFAULT_STEPS:
            if self._request is None and os.path.exists(self._run.path / kind):
                self._request = self._accept(kind, step, step_seconds)

    def _accept(self, kind: str, step: int, step_seconds: float) -> Request | None:
        """Rank 0: take a request from its file, once, and let the other ranks know; None where it is all theirs."""
        path = self._run.path / kind
        taken = path.with_name(f"{kind}.done")
        try:
            os.replace(path, taken)
        except OSError:
            self._poll_seconds = math.inf  # it would be found again each time
            raise
        request = dataclasses.replace(
            parse(kind, taken.read_text(errors="replace")), first_step=step, id=uuid.uuid4().hex
        )
        if kind == "memory_snapshot" and self._device.type != "cuda":
            raise ValueError("memory_snapshot needs a GPU: it records the GPU's allocations")
        if request.ranks != [0]:
            ahead = max(2, math.ceil(NOTICE_SECONDS / step_seconds))
            request = dataclasses.replace(request, first_step=step + ahead)
            self._run.profiles_dir.mkdir(exist_ok=True)
            write_json(self._notice, dataclasses.asdict(request))
            self._noticed = time.monotonic()
            print(f"{kind}: ranks {_ranks_text(request)} begin with step {request.first_step}", flush=True)
        return request if request.includes(0) else None

    def _hear(self) -> Request | None:
        """Other ranks: a request that is new and names this rank. One that is heard of late is still recorded."""
        if not os.path.exists(self._notice):
            return None
        found = read_json(self._notice)
        request = Request(**found) if found is not None else None
        if request is None or request.id == self._seen:
            return None
        self._seen = request.id
        return request if request.includes(self._rank) else None

    def _start(self, kind: str) -> Recorder:
        return TraceRecorder(self._device) if kind == "profile" else MemoryRecorder()

    def _finish(self) -> None:
        recorder, request, steps = self._recorder, self._request, self._recorded
        self._recorder, self._request, self._recorded = None, None, []
        assert recorder is not None and request is not None
        path = recording_path(self._run, request.kind, steps[0], self._rank)
        recorder.finish(path)
        if self._rank == 0:
            viewer = "https://ui.perfetto.dev" if request.kind == "profile" else "https://pytorch.org/memory_viz"
            others = "" if request.ranks == [0] else f", and beside it those of ranks {_ranks_text(request)}"
            print(
                f"{request.kind} of steps {steps[0]} to {steps[-1]}: {path}{others} (open it in {viewer})", flush=True
            )

    def _give_up(self, error: Exception) -> None:
        print(f"rank {self._rank}: nothing recorded: {error}", flush=True)
        self._recorder, self._request, self._recorded = None, None, []

    def _remove_notice(self) -> None:
        try:
            self._notice.unlink(missing_ok=True)
        except OSError as error:
            print(f"could not remove {self._notice}: {error}", flush=True)


def recording_path(run: RunFolder, kind: str, first_step: int, rank: int) -> Path:
    """Where a recording goes that begins with `first_step`."""
    return run.profiles_dir / f"step-{first_step:08d}-rank-{rank}{_ENDINGS[kind]}"


def _ranks_text(request: Request) -> str:
    return "all" if request.ranks is None else ", ".join(map(str, request.ranks))
