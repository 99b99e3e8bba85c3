"""What a preparation tells its user at the end."""

from typing import Any

from harness.data.documents.passed_over import counts, sentence
from harness.data.preparation.inputs import Inputs
from harness.data.preparation.job import PASSED_OVER


def print_summary(what: str, manifest: dict[str, Any], inputs: Inputs) -> None:
    """Tell what was made: what to know of it, and in the last line how much it is and what was passed over."""
    for remark in _remarks(manifest):
        print(f"note: {remark}")
    files = counts(inputs.passed_over)["files"]  # of now: a file may have come that is not read
    passed_over = sentence({"files": files, "rows": manifest["passed_over"]["rows"]})
    listed = f" (listed in {PASSED_OVER})" if any(manifest["passed_over"].values()) else ""
    print(f"{what}: {summary(manifest)}; {passed_over}{listed}")


def _remarks(manifest: dict[str, Any]) -> list[str]:
    found: list[str] = list(manifest["remarks"])
    if spelled := manifest.get("special_tokens_in_text"):
        tokens = ", ".join(f"{token} {count:,}" for token, count in spelled["tokens"].items())
        count = spelled["documents"]
        found.append(
            f"the text of {count:,} document{'s' * (count != 1)} spells out special tokens, encoded as text: {tokens}"
        )
    if inside := manifest.get("special_ids_in_text"):
        found.append(
            f"{inside:,} of them became special tokens all the same: the vocabulary itself makes them of text, so that a "
            "document may seem to end in its middle. Clean the text."
        )
    if unknown := manifest.get("unknown_tokens"):
        found.append(f"{unknown:,} tokens stand for text that the vocabulary lacks")
    return found


def summary(manifest: dict[str, Any]) -> str:
    """What was made, in a sentence, and what was dropped for it."""
    wanted = manifest["made_from"]["tokenizer"].get("vocab_size", manifest["vocab_size"])
    fewer = (
        f" (of {wanted:,} asked for: the text holds no more pairs to merge)" if manifest["vocab_size"] < wanted else ""
    )
    read = manifest["steps"][0]["documents"]
    of = f" of {read:,}" if len(manifest["steps"]) > 1 else ""
    return (
        f"{manifest['tokens']:,} tokens in {manifest['documents']:,}{of} documents, {len(manifest['token_files'])} token file(s), "
        f"vocabulary {manifest['vocab_size']:,}{fewer}"
    )
