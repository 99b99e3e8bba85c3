"""Compares what the run starts from with plain transformers: the same logits, all weights found and used."""

from harness.config.schema import RootConfig
from harness.launch.launch import run_folder
from harness.preflight.finding import Finding, Subject, skipped
from harness.text import bytes_text


def check_weights(subject: Subject) -> Finding:
    """On the CPU of this machine, in fp32, on a few tokens. Reads the folder two times."""
    config = subject.config
    folder = config.model.init_from
    if folder is None:
        return skipped("the run starts from random weights")
    if run_folder(config).has_checkpoints():
        return skipped("the run goes on from its own checkpoint")
    from harness.model.load import weight_problems

    if problems := weight_problems(config.model):
        return Finding(f"the weights in {folder} don't fit", failures=tuple(problems))
    from harness.model.compare import available_bytes, bytes_needed

    needed, available = bytes_needed(config.model), available_bytes()
    if needed > available:
        return Finding(
            f"not compared: this machine has {bytes_text(available)} of free memory",
            warnings=(
                f"model.init_from={folder}: comparing it with transformers takes {bytes_text(needed)} of main memory, and "
                f"{bytes_text(available)} is free; run `--only weights` on a node that has more",
            ),
        )
    return _compared(config, folder)


def _compared(config: RootConfig, folder: str) -> Finding:
    from harness.model.compare import TOLERANCE, compare_folder

    try:
        found = compare_folder(config.model, config.data.seq_len)
    except Exception as error:  # transformers raises whatever its own loading does
        return Finding(
            f"{folder} can't be compared",
            failures=(f"model.init_from={folder}: transformers can't load it: {type(error).__name__}: {error}",),
        )
    advice = "the run would train another model than transformers loads; report this with the folder's config.json"
    return Finding(
        f"logits of {found.tokens} tokens differ by {found.share:.1e} of the largest from transformers' (at most {TOLERANCE:.0e}), "
        f"rotary positions up to {found.positions:,} by {found.rotary_difference:.1e}; {len(found.not_found)} weights not found, "
        f"{len(found.not_used)} not used",
        failures=tuple(f"model.init_from={folder}: {problem}: {advice}" for problem in found.problems()),
        facts={
            "largest_difference": found.largest_difference,
            "largest_logit": found.largest_logit,
            "tolerance": TOLERANCE,
            "rotary_difference": found.rotary_difference,
            "not_found": list(found.not_found),
            "not_used": list(found.not_used),
            "not_finite": list(found.not_finite),
        },
    )
