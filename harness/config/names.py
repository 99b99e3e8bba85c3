"""Names of runs: what they may be made of, and those that the runs of a sweep get."""

import hashlib
import re

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=,-]*")
MAX_NAME = 128
"""Characters. A file's name may have 255 bytes, and files are named after run, attempt and node together."""
MAX_VALUE = 40
"""Characters of one value in the name of a sweep's run; longer ones are cut, and told apart by a hash."""


def name_problem(name: str) -> str | None:
    """What is wrong with a run's name; None: nothing."""
    shown = f"run.name={name}" if len(name) <= MAX_NAME else f"run.name={name[:40]}..."
    if not NAME.fullmatch(name):
        return f"{shown}: use letters, digits and . _ - = , only, and begin with a letter, a digit or _"
    if len(name) > MAX_NAME:
        return f"{shown}: {len(name)} characters are too long for a name; use at most {MAX_NAME}"
    return None


def sweep_name(base: str, values: dict[str, str]) -> str:
    """`ablation_1b,lr=1e-4`: what is swept over, with each value as it was typed, as far as a name can hold it."""
    return base + "".join(f",{key.rpartition('.')[2]}={_in_name(value)}" for key, value in values.items())


def _in_name(value: str) -> str:
    bare = re.sub(r"^[^A-Za-z0-9._=-]+|[^A-Za-z0-9._=-]+$", "", value)
    short = re.sub(r"[^A-Za-z0-9._=-]+", "-", bare)
    if len(short) <= MAX_VALUE:
        return short
    return f"{short[: MAX_VALUE - 9]}-{hashlib.blake2b(value.encode(), digest_size=4).hexdigest()}"
