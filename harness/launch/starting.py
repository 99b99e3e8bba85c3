"""What can be wrong with the folder that a new run starts from, and what the plan says of it."""

from collections.abc import Iterator
from pathlib import Path

from harness.config.schema import DataConfig, RootConfig
from harness.data.check import find_tokenizer
from harness.data.errors import DataError
from harness.data.token_files import inspect_source
from harness.data.tokenizer_files import locate_tokenizer, text_of_ids
from harness.run.folder import RunFolder


def starts_from(config: RootConfig, run: RunFolder) -> str | None:
    """The folder; None: the run starts from random weights, or goes on from its own checkpoint."""
    return None if run.has_checkpoints() else config.model.init_from


def starting_remarks(config: RootConfig, run: RunFolder) -> list[str]:
    """What of its config.json is passed over or changed."""
    if starts_from(config, run) is None:
        return []
    from harness.model.starting_model import FolderConfigError, remarks

    try:
        return remarks(config.model)
    except FolderConfigError:
        return []  # `starting_problems` says that there is no such folder


def starting_problems(config: RootConfig, run: RunFolder, data_problems: list[str]) -> list[str]:
    """One sentence per problem; `data_problems` are those that are known of the data."""
    folder = starts_from(config, run)
    if folder is None:
        return []
    from harness.model.load import weight_problems

    problems = weight_problems(config.model)
    vocabulary = f"model.vocab_size={config.model.vocab_size}"
    if any(vocabulary in problem for problem in data_problems):
        problems.append(f"{vocabulary} comes from model.init_from={folder}: give data made with that model's tokenizer")
    elif not data_problems:
        problems += _other_tokenizers(Path(folder).expanduser(), config.data)
    return problems


def _other_tokenizers(folder: Path, data: DataConfig) -> Iterator[str]:
    """Sources whose ids stand for other text than in the model's own tokenizer, if it has one with it."""
    if (own := locate_tokenizer(str(folder))) is None:
        return
    for name, source in data.sources.items():
        opened, _ = inspect_source(name, source.path)
        try:
            path = find_tokenizer(data, opened)
            texts, expected = ({} if path is None else text_of_ids(path)), text_of_ids(own)
        except DataError as error:
            yield str(error)
            return
        different = sorted(number for number in texts.keys() & expected.keys() if texts[number] != expected[number])
        if different:
            number = different[0]
            yield (
                f"data.sources.{name}: tokenised with {path}, where {len(different):,} ids stand for other text than in {own} (id "
                f"{number} is {texts[number]!r}, in model.init_from {expected[number]!r}); give data made with the model's "
                "tokenizer, or remove that file if it is not the model's"
            )
