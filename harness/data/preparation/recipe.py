"""A recipe: what `harness.data prepare` drops before it tokenises. One YAML file, every key optional; see `Recipe`."""

import difflib
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.data.documents.walk import look_at, walk
from harness.data.errors import DataError

FILTERS = {
    "gopher_repetition": "GopherRepetitionFilter",
    "gopher_quality": "GopherQualityFilter",
    "c4_quality": "C4QualityFilter",
    "fineweb_quality": "FineWebQualityFilter",
}
"""Name in a recipe -> datatrove's filter. Its parameters are the filter's own."""
GIVEN_BY_US = {"exclusion_writer", "language"}
"""Parameters of datatrove's filters that no recipe sets."""


@dataclass(frozen=True)
class LanguageRule:
    """Keeps documents by language. Leaves its guess in the manifest's counts."""

    keep: list[str]
    """Codes such as en, fr (ISO 639-1; those of the model, where one is given)."""
    min_score: float = 0.65
    """The least probability that a kept document is in one of them."""
    model: str | None = None
    """A fastText model file such as lid.176.bin or GlotLID's; null: py3langid with its own model."""


@dataclass(frozen=True)
class MinhashRule:
    """Keeps one of several documents that share most of their word n-grams."""

    n_grams: int = 5
    """Words in what is compared."""
    num_buckets: int = 14
    hashes_per_bucket: int = 8
    """Documents whose share of common n-grams is above about (1/num_buckets)^(1/hashes_per_bucket) meet: 0.72 here."""


@dataclass(frozen=True)
class DecontaminationRule:
    """Drops documents that share a run of words with an eval set."""

    evals: dict[str, str]
    """Name -> file or folder (JSONL, Parquet, text, or written by save_to_disk)."""
    keys: list[str] = field(default_factory=lambda: ["text"])
    """Keys of an eval set's rows; their texts are joined in this order: [question, answer]."""
    n_grams: int = 12
    """Words in a row that must not appear."""


@dataclass(frozen=True)
class Recipe:
    """What is dropped, in this order: language, filters, decontamination, exact and near duplicates."""

    word_language: str = "en"
    """Whose rules cut text into words and sentences in filters, near duplicates and decontamination."""
    language: LanguageRule | None = None
    filters: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Any of gopher_repetition, gopher_quality, c4_quality, fineweb_quality -> parameters of datatrove's filter ({}: its own)."""
    decontaminate: DecontaminationRule | None = None
    exact_dedup: bool = False
    """Keep one of several documents with the same text."""
    minhash_dedup: MinhashRule | None = None

    @property
    def drops(self) -> bool:
        """Whether any document could be dropped or changed."""
        return bool(
            self.language or self.filters or self.decontaminate or self.exact_dedup or self.minhash_dedup is not None
        )

    @property
    def needs_words(self) -> bool:
        """Whether text must be cut into words."""
        return bool(self.filters or self.decontaminate or self.minhash_dedup is not None)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises DataError that lists everything wrong with it, and what is not installed for it."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise DataError(f"--recipe {path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"--recipe {path}: not YAML: {error}") from None
    problems: list[str] = []
    recipe = _build(Recipe, {} if content is None else content, "", problems)
    if isinstance(recipe, Recipe):
        _check(recipe, path, problems)
    if problems:
        raise DataError("\n".join(f"--recipe {path}: {problem}" for problem in problems))
    assert isinstance(recipe, Recipe)
    return recipe


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice: YAML's own loader would let the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if repeated := [key for key in keys if keys.count(key) > 1]:
            raise yaml.YAMLError(f"{repeated[0]} is given twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def recipe_from_dict(content: dict[str, Any]) -> Recipe:
    """The recipe that `asdict` made `content` of."""
    problems: list[str] = []
    recipe = _build(Recipe, content, "", problems)
    assert isinstance(recipe, Recipe) and not problems, problems
    return recipe


def describe(recipe: Recipe) -> dict[str, Any]:
    """The recipe with every value that was left open, and what tells its files from later versions of them."""
    content = asdict(recipe)
    for name, given in recipe.filters.items():
        content["filters"][name] = {key: _plain(value) for key, value in (_parameters(name) | given).items()}
    paths = [recipe.language.model] if recipe.language and recipe.language.model else []
    paths += recipe.decontaminate.evals.values() if recipe.decontaminate else []
    return content | {"order": list(recipe.filters), "files": {path: _stamp(Path(path).expanduser()) for path in paths}}


def _build(kind: Any, content: Any, where: str, problems: list[str]) -> Any:
    """An instance of the dataclass `kind` from a mapping; notes every problem, and returns None after one."""
    before = len(problems)
    if not isinstance(content, dict):
        problems.append(f"{where or 'the file'}: must be a mapping of {', '.join(f.name for f in fields(kind))}")
        return None
    names = [f.name for f in fields(kind)]
    for key in content:
        if key not in names:
            problems.append(f"{_join(where, key)}: no such key{_hint(key, names)}")
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(kind)
    for f in fields(kind):
        name = _join(where, f.name)
        if f.name in content:
            values[f.name] = _value(hints[f.name], content[f.name], name, problems)
        elif f.default is MISSING and f.default_factory is MISSING:
            problems.append(f"{name}: missing")
    return kind(**values) if len(problems) == before else None


def _value(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    kind = options[0]
    if is_dataclass(kind):
        if kind is MinhashRule and isinstance(value, bool):  # minhash_dedup: true
            return MinhashRule() if value else None
        return _build(kind, value, where, problems)
    if kind == dict[str, dict[str, Any]]:
        return _filters(value, where, problems)
    tests: dict[Any, tuple[Callable[[Any], bool], str]] = {
        bool: (lambda v: isinstance(v, bool), "true or false"),
        int: (lambda v: isinstance(v, int) and not isinstance(v, bool), "a whole number"),
        float: (lambda v: isinstance(v, int | float) and not isinstance(v, bool), "a number"),
        str: (lambda v: isinstance(v, str) and v != "", "text"),
        list[str]: (
            lambda v: isinstance(v, list) and bool(v) and all(isinstance(x, str) for x in v),
            "a list of names",
        ),
        dict[str, str]: (
            lambda v: isinstance(v, dict) and bool(v) and all(isinstance(x, str) for kv in v.items() for x in kv),
            "a mapping of names to paths",
        ),
    }
    fits, wanted = tests[kind]
    if not fits(value):
        problems.append(f"{where}: must be {wanted}, not {value!r}" + _yaml_boolean(value))
    return value


def _yaml_boolean(value: Any) -> str:
    """YAML reads the language code no as false."""
    listed = value if isinstance(value, list) else []
    return " (quote the code 'no', which YAML reads as false)" if False in listed else ""


def _filters(value: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(value, dict):
        problems.append(
            f"{where}: must be a mapping of filters ({', '.join(FILTERS)}) to their parameters ({{}}: defaults)"
        )
        return None
    built = {}
    for name, given in value.items():
        if name not in FILTERS:
            problems.append(f"{_join(where, name)}: no such filter{_hint(name, FILTERS)}")
        elif not isinstance(given, dict | None):
            problems.append(f"{_join(where, name)}: must be a mapping of parameters ({{}}: defaults), not {given!r}")
        else:
            known = _parameters(name)
            for key, parameter in (given or {}).items():
                if key not in known:
                    problems.append(f"{_join(where, name)}.{key}: no such parameter{_hint(key, known)}")
                elif not _like(parameter, known[key]):
                    problems.append(
                        f"{_join(where, name)}.{key}: {parameter!r} does not look like its default {known[key]!r}"
                    )
            built[name] = dict(given or {})
    return built


def _parameters(name: str) -> dict[str, Any]:
    """Parameters of a filter with datatrove's defaults."""
    from datatrove.pipeline import filters

    signature = inspect.signature(getattr(filters, FILTERS[name]).__init__)
    return {
        key: parameter.default
        for key, parameter in signature.parameters.items()
        if key != "self" and key not in GIVEN_BY_US
    }


def _like(value: Any, default: Any) -> bool:
    """Whether a parameter has the kind that its default has; null switches most of them off."""
    if value is None or default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, int | float):
        return isinstance(value, int | float)
    return isinstance(value, list | tuple) == isinstance(default, list | tuple)


def _check(recipe: Recipe, path: Path, problems: list[str]) -> None:
    """What is wrong with values that have the right type, and what is missing on this machine."""
    if rule := recipe.language:
        if not 0 <= rule.min_score <= 1:
            problems.append(f"language.min_score: must be from 0 to 1, not {rule.min_score}")
        from harness.data.preparation.language import language_problems

        problems += language_problems(rule)
    if near := recipe.minhash_dedup:
        for name in ("n_grams", "num_buckets", "hashes_per_bucket"):
            if getattr(near, name) < 1:
                problems.append(f"minhash_dedup.{name}: must be at least 1, not {getattr(near, name)}")
    if evals := recipe.decontaminate:
        if evals.n_grams < 2:
            problems.append(f"decontaminate.n_grams: must be at least 2, not {evals.n_grams}")
        for name, place in evals.evals.items():
            if not Path(place).expanduser().exists():
                problems.append(f"decontaminate.evals.{name}: {place} does not exist")
            if not name.replace("_", "").replace("-", "").isalnum():
                problems.append(f"decontaminate.evals.{name}: a name may hold letters, digits, - and _ only")
    if recipe.needs_words:
        problems += _word_problems(recipe.word_language)


def _word_problems(language: str) -> list[str]:
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    try:
        load_word_tokenizer(language).word_tokenize("one word")
    except ImportError as error:
        return [
            f"cutting text of {language!r} into words needs a library: {error} All for English: pip install -e '.[data]'"
        ]
    except ValueError:
        return [f"word_language: datatrove knows no words of {language!r}. Give a code such as en, fr, zh."]
    return []


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _stamp(place: Path) -> list[list[Any]]:
    files = walk(str(place)).files if place.is_dir() else [look_at(str(place))]
    return [[file.name, file.size, file.modified_ns] for file in files]


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _hint(key: Any, names: Any) -> str:
    close = difflib.get_close_matches(str(key), list(names), 1)
    return f". Did you mean {close[0]}?" if close else f". There are {', '.join(names)}."
