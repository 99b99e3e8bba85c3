"""Which keys hold paths, and what can't be one: the file system would only say so from within, and not by the key."""

from collections.abc import Iterator

from harness.config.schema import RootConfig

MAX_PART, MAX_PATH = 255, 4000
"""Bytes of one name, and of a whole path with what the harness appends to it (the kernel's limit is 4,096)."""


def path_problems(config: RootConfig) -> list[str]:
    """What is wrong with the paths, as paths; whether they lead anywhere is another question."""
    needed = {"runs_dir": config.runs_dir, "monitor.targets_dir": config.monitor.targets_dir,
              "data.packing_cache": config.data.packing_cache}  # fmt: skip
    empty = [f"{key} is empty: give a folder" for key, path in needed.items() if not path.strip()]
    return empty + [problem for key, path in _paths(config) if (problem := _problem(key, path))]


def _paths(config: RootConfig) -> Iterator[tuple[str, str]]:
    data = config.data
    yield "runs_dir", config.runs_dir
    yield "monitor.targets_dir", config.monitor.targets_dir
    yield "data.packing_cache", data.packing_cache
    for key, path in (("data.stage_to", data.stage_to), ("data.tokenizer", data.tokenizer),
                      ("model.init_from", config.model.init_from)):  # fmt: skip
        if path is not None:
            yield key, path
    for group, sources in (("sources", data.sources), ("validation", data.validation)):
        for name, source in sources.items():
            yield f"data.{group}.{name}.path", source.path
            for number, replica in enumerate(source.replicas):
                yield f"data.{group}.{name}.replicas[{number}]", replica


def _problem(key: str, path: str) -> str | None:
    shown = path if len(path) <= 60 else f"{path[:60]}..."
    if not path.isprintable():
        return f"{key}={path[:60]!r}: a path of printable characters is needed"
    longest = max((len(part.encode()) for part in path.split("/")), default=0)
    if longest > MAX_PART:
        return f"{key}={shown}: a name of {longest} bytes is too long; a file's or folder's may have {MAX_PART}"
    if len(path.encode()) > MAX_PATH:
        return f"{key}={shown}: {len(path.encode()):,} bytes are too long for a path; at most {MAX_PATH:,}"
    return None
