"""One attempt at one read: from a file's bytes to token ids that can be trusted."""

from collections.abc import Sequence

import numpy as np

from harness.data.copies import Copy, Damaged, OpenFiles, Scratch, open_copies
from harness.data.read_requests import Request
from harness.data.read_settings import ReadSettings
from harness.data.stage_paths import StagedFiles
from harness.data.token_files import DTYPES
from harness.data.windows import Windows

LARGEST_TOKEN = 2**31 - 1
"""Token ids are kept in int32."""


class Reader:
    """Reads from any copy of any source. Shared by all threads of a loader, each with a scratch of its own."""

    def __init__(
        self,
        windows: Sequence[Windows],
        settings: ReadSettings,
        vocab_size: int | None,
        staged: StagedFiles | None = None,
    ) -> None:
        self._windows = windows
        self._files = OpenFiles(settings.verify)
        self._limit = LARGEST_TOKEN + 1 if vocab_size is None else vocab_size
        self.copies: list[list[Copy]] = [
            open_copies(one.source, settings.replicas.get(one.source.name, ()), self._files, settings.verify, staged)
            for one in windows
        ]
        """Of each source, in the order in which they are asked."""
        self._own = 0 if staged is None else 1
        keys: dict[tuple[str, str], int] = {}
        self._keys = [
            [
                [
                    keys.setdefault((copy.mount(file), one.source.name), len(keys))
                    for file in range(len(one.source.files))
                ]
                for copy in copies
            ]
            for one, copies in zip(windows, self.copies, strict=True)
        ]
        self.key_names = list(keys)
        """(mount point, name of the source) of each key."""

    def key(self, request: Request, copy: int) -> int:
        """What an observer calls reads of the request's file from copy number `copy`."""
        return self._keys[request.source][copy][request.file]

    def mount(self, request: Request, copy: int) -> str:
        """What the request's file fails together with there."""
        return self.copies[request.source][copy].mount(request.file)

    def name(self, request: Request) -> str:
        """Name of the request's source."""
        return self._windows[request.source].source.name

    def group(self, request: Request) -> str:
        """Part of `data` in the config that names the request's source."""
        return self._windows[request.source].source.group

    def source_key(self, request: Request) -> str:
        """What messages call the request's source."""
        return self._windows[request.source].source.key

    def size(self, request: Request) -> int:
        """Bytes of the request."""
        return request.tokens * self._windows[request.source].source.token_size

    def available(self, request: Request) -> list[int]:
        """Numbers of the copies that have the request's file."""
        copies = self.copies[request.source]
        return [0] if len(copies) == 1 else [n for n, copy in enumerate(copies) if copy.has(request.file)]

    def path(self, request: Request, copy: int | None = None) -> str:
        """Where copy number `copy` of the request's file lies; None: the path that the config names."""
        return self.copies[request.source][self._own if copy is None else copy].path(request.file)

    def read(self, request: Request, copy: int, scratch: Scratch) -> np.ndarray:
        """The tokens, uint16 or uint32 [tokens], good until `scratch` is used again. Raises OSError, `Damaged` among them."""
        width = self._windows[request.source].source.token_size
        data = self.copies[request.source][copy].read(request.file, request.offset, request.tokens * width, scratch)
        tokens = np.frombuffer(data, DTYPES[width])
        if (highest := int(tokens.max())) >= self._limit:
            at = request.offset + int(tokens.argmax()) * width
            raise Damaged(
                f"token {highest} at byte {at}, but model.vocab_size={self._limit}: the file is damaged or made with another "
                "tokenizer"
            )
        return tokens

    def close(self) -> None:
        """Close all files; may hang where their storage does."""
        self._files.close()
