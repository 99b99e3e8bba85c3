"""The index of word n-grams that must not appear: written as datatrove's filter reads it.

datatrove's own indexer takes its eval sets from lighteval and needs that installed; ours takes files.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig
from datatrove.utils.hashing import HashConfig, create_hash_func
from datatrove.utils.text import ngrams, simplify_text
from datatrove.utils.word_tokenizers import load_word_tokenizer

from harness.data.documents.passed_over import counts, sentence
from harness.data.errors import DataError
from harness.data.preparation.inputs import Inputs, find_inputs
from harness.data.preparation.readers import read_documents
from harness.data.preparation.recipe import DecontaminationRule
from harness.run.files import write_json

HASHES = HashConfig(hash_fc="sha1")
"""For all that datatrove hashes here: its other choice, xxhash, takes text only in versions before 4."""


def decontamination_config(rule: DecontaminationRule) -> NGramsDecontConfig:
    """As datatrove's filter takes it."""
    return NGramsDecontConfig(n_grams=rule.n_grams, hash_config=HASHES)


class IndexEvals(PipelineStep):
    """Writes `folder`/NAME.index.hashes for every eval set, and evals.json with what was found in it."""

    name = "Index"
    type = "Decontamination"

    def __init__(self, rule: DecontaminationRule, folder: Path, word_language: str) -> None:
        super().__init__()
        self.rule = rule
        self.folder = folder
        self.word_language = word_language

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Index all of them. Raises DataError for one without text, or too short to be recognised at all."""
        config = decontamination_config(self.rule)
        hashed, words = create_hash_func(config.hash_config), load_word_tokenizer(self.word_language)
        self.folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, dict[str, Any]] = {}
        for name, place in self.rule.evals.items():
            hashes: set[int] = set()
            items = short = 0
            inputs = eval_inputs(name, place, self.rule.keys)
            for text in eval_texts(name, inputs, self.rule.keys):
                cut = words.word_tokenize(simplify_text(text, config.norm_config))
                items, short = items + 1, short + (len(cut) < config.n_grams)
                hashes.update(hashed(" ".join(run)) for run in ngrams(cut, config.n_grams))
            if not hashes:
                raise DataError(
                    f"decontaminate.evals.{name}: {place} holds {items} item(s), none of {config.n_grams} words or more "
                    f"in {', '.join(self.rule.keys)}. Lower decontaminate.n_grams, or name more keys."
                )
            np.array(sorted(hashes), dtype=config.hash_config.np_descr).tofile(self.folder / f"{name}.index.hashes")
            found[name] = {"items": items, "too_short": short, "n_grams": len(hashes)}
            if inputs.passed_over:
                found[name]["passed_over"] = sentence(counts(inputs.passed_over))
        write_json(self.folder / "evals.json", found)


def eval_inputs(name: str, place: str, keys: list[str]) -> Inputs:
    """The files of an eval set. Raises DataError that names the recipe's key."""
    with _named(name):
        return find_inputs(place, None, keys[0])


def eval_texts(name: str, inputs: Inputs, keys: list[str]) -> Iterator[str]:
    """The text of each item of an eval set: its keys joined. Raises DataError that names the recipe's key."""
    with _named(name):
        yield from read_documents(inputs, keys)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        message = str(error).replace("--input ", "").replace("Pass --text-key.", "Set decontaminate.keys.")
        raise DataError(f"decontaminate.evals.{name}: {message}") from None


def read_eval_facts(folder: Path) -> dict[str, Any]:
    """What `IndexEvals` wrote: items, those too short to be found, and n-grams of each eval set."""
    facts: dict[str, Any] = json.loads((folder / "evals.json").read_text())
    return facts
