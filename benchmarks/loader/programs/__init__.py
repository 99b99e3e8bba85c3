"""One file per program. Each has the same names, and imports its library only when it is asked for batches:

PACKAGES          distributions whose versions are reported
prepare           token files -> the program's own format in a folder of its own; not timed
batches           endless pairs of input ids and labels, int64 tensors [BATCH, SEQ_LEN], shuffled, with so many workers
"""

from importlib import import_module
from types import ModuleType

NAMES = {
    "harness": "ours",
    "memmap + DataLoader": "memmap",
    "datasets, streaming": "hf",
    "mosaicml-streaming": "mosaic",
    "litdata": "lit",
}


def program(name: str) -> ModuleType:
    """The program that a table calls `name`."""
    return import_module(f"benchmarks.loader.programs.{NAMES[name]}")
