"""The step that turns documents into tokens, in datatrove's files."""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.tokens.tokenizer import TokenizedFile

from harness.data.preparation.tallies import ENCODE
from harness.data.tokenizer.encoder import Encoder, open_encoder
from harness.data.tokenizer_files import read_tokenizer

ENCODE_DOCUMENTS = 256
ENCODE_CHARACTERS = 4_000_000
"""So much is encoded at once, at most (one document more): bounds the memory of a task."""
SEED = 0
"""Of the shuffle of the documents inside each file. The order of training is the run's own (data.seed)."""
SPELLED_OUT, UNKNOWN, SPECIAL_IDS = "spelled_out", "unknown_tokens", "special_ids"
"""Statistics that the manifest tells: special tokens in documents' text (documents, and by token), tokens that stand for
what the vocabulary lacks, and special ids that the vocabulary itself makes of text."""


class EncodeDocuments(DocumentTokenizer):
    """datatrove's step, whose files and shuffle it keeps, with our own encoding."""

    type, name = ENCODE.split(": ")

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        facts = read_tokenizer(tokenizer)
        super().__init__(str(folder), str(tokenizer), eos_token=facts.eos_token, seed=SEED)
        self.path = tokenizer
        self.highest_id = facts.size - 1

    @cached_property
    def token_size(self) -> int:
        """Bytes per token, by the highest id: datatrove goes by the number of tokens, and ids may have gaps."""
        return 4 if self.highest_id > np.iinfo(np.uint16).max else 2

    def write_unshuffled(self, data: Iterable[Document], filename: str) -> TokenizedFile:
        """Encode all documents into a file in the order in which they come."""
        encoder = open_encoder(self.path, self.eos_token)
        file = TokenizedFile(
            self.output_folder,
            filename,
            tokenizer_name_or_path=str(self.path),
            save_final_metadata=True,
            token_size=self.token_size,
        )
        for texts in batches(document.text for document in data):
            for text, ids in zip(texts, encoder.encode(texts), strict=True):
                file.write(ids, None)
                self._count(encoder, text, ids)
        file.close()
        return file

    def _count(self, encoder: Encoder, text: str, ids: list[int]) -> None:
        if spelled := encoder.spelled_out(text):
            self.stat_update(SPELLED_OUT)
            for token, count in spelled.items():
                self.stat_update(f"{SPELLED_OUT}_{token}", value=count)
        own = ids[len(encoder.before) : len(ids) - len(encoder.after)]
        if encoder.unknown is not None and (unknown := own.count(encoder.unknown)):
            self.stat_update(UNKNOWN, value=unknown)
        if spelled and (special := sum(i in encoder.special and i != encoder.unknown for i in own)):
            self.stat_update(SPECIAL_IDS, value=special)


def batches(texts: Iterator[str]) -> Iterator[list[str]]:
    """Lists of texts that are encoded at once."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == ENCODE_DOCUMENTS or characters >= ENCODE_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def encoding_facts(stats: Counter[str]) -> dict[str, object]:
    """What `EncodeDocuments` counted in all tasks, as the manifest has it; only what there is."""
    tokens = {
        key.removeprefix(f"{SPELLED_OUT}_"): count for key, count in stats.items() if key.startswith(f"{SPELLED_OUT}_")
    }
    facts: dict[str, object] = {}
    if tokens:
        facts["special_tokens_in_text"] = {"documents": stats[SPELLED_OUT], "tokens": tokens}
    if stats[SPECIAL_IDS]:
        facts["special_ids_in_text"] = stats[SPECIAL_IDS]
    if stats[UNKNOWN]:
        facts["unknown_tokens"] = stats[UNKNOWN]
    return facts
