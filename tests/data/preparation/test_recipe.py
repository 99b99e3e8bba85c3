from pathlib import Path

import pytest

from harness.data.errors import DataError
from harness.data.preparation.recipe import LanguageRule, MinhashRule, Recipe, describe, read_recipe


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def problems(tmp_path: Path, text: str) -> str:
    with pytest.raises(DataError) as error:
        read_recipe(written(tmp_path, text))
    return str(error.value)


def test_an_empty_recipe_drops_nothing(tmp_path: Path) -> None:
    assert read_recipe(written(tmp_path, "")) == Recipe()
    assert not Recipe().drops


def test_every_key(tmp_path: Path) -> None:
    (tmp_path / "eval.jsonl").write_text('{"text": "x"}\n')
    text = f"""
    word_language: en
    language: {{keep: [en, fr], min_score: 0.5}}
    filters: {{gopher_quality: {{min_doc_words: 10}}, gopher_repetition:}}
    decontaminate: {{evals: {{mine: {tmp_path}/eval.jsonl}}, keys: [text], n_grams: 8}}
    exact_dedup: true
    minhash_dedup: true
    """
    recipe = read_recipe(written(tmp_path, text))
    assert recipe.language == LanguageRule(["en", "fr"], 0.5)
    assert recipe.minhash_dedup == MinhashRule() and recipe.drops
    assert list(recipe.filters) == ["gopher_quality", "gopher_repetition"]  # their order counts
    described = describe(recipe)
    assert described["filters"]["gopher_quality"]["min_doc_words"] == 10
    assert described["filters"]["gopher_quality"]["max_doc_words"] == 100000
    before = described["files"]
    (tmp_path / "eval.jsonl").write_text('{"text": "another"}\n')
    assert describe(recipe)["files"] != before


def test_the_order_of_filters_is_part_of_what_a_preparation_is_known_by(tmp_path: Path) -> None:
    one, other = (
        describe(read_recipe(written(tmp_path, f"filters: {{{first}: {{}}, {second}: {{}}}}")))
        for first, second in (("c4_quality", "gopher_quality"), ("gopher_quality", "c4_quality"))
    )
    assert one != other


def test_a_key_given_twice(tmp_path: Path) -> None:
    """YAML's own loader takes the last and drops the first without a word."""
    assert "not YAML: filters is given twice" in problems(tmp_path, "filters: {c4_quality: {}}\nfilters: {}\n")


def test_the_example_is_right() -> None:
    assert read_recipe(Path(__file__).parents[3] / "conf/recipes/web.yaml").drops


def test_all_problems_at_once(tmp_path: Path) -> None:
    text = """
    langage: {keep: [en]}
    language: {keep: [en, klingon], min_score: 2}
    filters:
      gopher: {}
      gopher_quality: {min_doc_word: 3, max_doc_words: many}
      c4_quality: 3
    exact_dedup: "yes"
    minhash_dedup: {num_buckets: 1.5}
    decontaminate: {n_grams: 12}
    """
    found = problems(tmp_path, text)
    for part in (
        "langage: no such key. Did you mean language?",
        "filters.gopher: no such filter. Did you mean gopher_quality?",
        "filters.gopher_quality.min_doc_word: no such parameter. Did you mean min_doc_words?",
        "filters.gopher_quality.max_doc_words: 'many' does not look like its default 100000",
        "filters.c4_quality: must be a mapping of parameters",
        "exact_dedup: must be true or false, not 'yes'",
        "minhash_dedup.num_buckets: must be a whole number, not 1.5",
        "decontaminate.evals: missing",
    ):
        assert f"--recipe {tmp_path}/recipe.yaml: {part}" in found
    assert len(found.splitlines()) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("language: {keep: [klingon]}", "language.keep: py3langid knows no 'klingon'; it knows "),
        ("language: {keep: [en], min_score: 2}", "language.min_score: must be from 0 to 1, not 2"),
        ("language: {keep: [no]}", "quote the code 'no', which YAML reads as false"),
        ("language: {keep: [en], model: nowhere.bin}", "language.model: nowhere.bin is no file"),
        ("minhash_dedup: {num_buckets: 0}", "minhash_dedup.num_buckets: must be at least 1, not 0"),
        ("{word_language: xx-none, minhash_dedup: true}", "datatrove knows no words of 'xx-none'"),
        ("decontaminate: {evals: {a: nowhere}}", "decontaminate.evals.a: nowhere does not exist"),
        ("- a list", "the file: must be a mapping of word_language"),
        ("a: [1", "not YAML"),
    ],
)
def test_one_problem(tmp_path: Path, text: str, message: str) -> None:
    assert message in problems(tmp_path, text)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.yaml: cannot be read: No such file"):
        read_recipe(tmp_path / "nowhere.yaml")
