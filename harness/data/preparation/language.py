"""Which language a document is in, by a model that needs no network: py3langid's own, or a fastText file of the user's."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from harness.data.preparation.recipe import LanguageRule

MAX_CHARS = 20_000
"""Text looked at, at most: more does not change the answer and costs as much as a quality filter."""


class LanguageFilter(BaseFilter):
    """Keeps documents whose probability of being in one of `rule.keep` reaches `rule.min_score`.

    Own and not datatrove's, which downloads its model. Leaves `language` and `language_score` in the metadata.
    """

    name = "Language"

    def __init__(self, rule: LanguageRule, exclusion_writer: DiskWriter | None = None) -> None:
        super().__init__(exclusion_writer)
        self.rule = rule

    def filter(self, doc: Document) -> tuple[bool, str]:
        """Whether it is kept, and its language as the reason otherwise."""
        scores = language_scores(doc.text, self.rule.model)
        best = max(scores, key=scores.__getitem__, default="unknown")
        doc.metadata["language"], doc.metadata["language_score"] = best, round(scores.get(best, 0.0), 4)
        kept = any(scores.get(language, 0.0) >= self.rule.min_score for language in self.rule.keep)
        return kept, f"unsure_{best}" if best in self.rule.keep else best


def language_scores(text: str, model: str | None = None) -> dict[str, float]:
    """Language -> probability; the model's own codes."""
    text = text[:MAX_CHARS]
    if model is None:
        return dict(_langid().rank(text))
    labels, scores = _fasttext(model).predict(text.replace("\n", " "), k=-1)
    return {label.removeprefix("__label__"): float(score) for label, score in zip(labels, scores, strict=True)}


def guess_language(text: str) -> tuple[str, float]:
    """The most probable language and its probability, by py3langid."""
    language, score = _langid().classify(text[:MAX_CHARS])
    return str(language), float(score)


def language_problems(rule: LanguageRule) -> list[str]:
    """What is wrong with a rule: library or model missing, or a language that the model does not know."""
    try:
        if rule.model is None:
            known, source = _langid().labels, "py3langid"
        else:
            if not Path(rule.model).expanduser().is_file():
                return [f"language.model: {rule.model} is no file. Download lid.176.bin or leave it out for py3langid."]
            labels = _fasttext(rule.model).predict("word", k=-1, threshold=-1.0)[0]
            known, source = [label.removeprefix("__label__") for label in labels], rule.model
    except ImportError as error:
        return [f"language: {error.name} is not installed. pip install -e '.[data]'"]
    except (ValueError, RuntimeError) as error:
        return [f"language.model: {rule.model} is no fastText model: {error}"]
    return [
        f"language.keep: {source} knows no {code!r}; it knows {', '.join(sorted(known)[:200])}"
        for code in rule.keep
        if code not in known
    ]


@lru_cache(maxsize=1)
def _langid() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@lru_cache(maxsize=1)
def _fasttext(model: str) -> Any:
    import fasttext

    return fasttext.load_model(str(Path(model).expanduser()))
