"""Documents that each rule of a recipe has something to say about."""

import json
import random
from pathlib import Path

SUBJECTS = [
    "the harbour",
    "an old sailor",
    "the cat of the house",
    "my neighbour",
    "the red lighthouse",
    "a quiet town",
    "the engineer",
]
VERBS = ["looked at", "waited for", "walked away from", "wrote about", "had to follow", "was afraid of", "painted"]
OBJECTS = [
    "the sea",
    "that machine",
    "a long letter",
    "the storm to come",
    "those green hills",
    "the last train",
    "a broken clock",
]
ENDS = [
    "before the evening",
    "with a smile",
    "and said nothing",
    "in the rain",
    "to be sure",
    "for the third time",
    "without a reason",
]
FRENCH = "Le port était calme ce soir-là, et les navires restaient à l'ancre jusqu'au retour du vent du nord. Rien ne bougeait. "
QUESTION = "Which of the seven captains of the northern fleet refused to sail on the ninth of March"
ANSWER = "It was captain Miriam Oldenburg who stayed in the harbour with all of her crew"


def story(seed: int, sentences: int = 25) -> str:
    """English that passes the quality filters."""
    source = random.Random(seed)
    parts = (SUBJECTS, VERBS, OBJECTS, ENDS)
    names = ["".join(source.choices("abcdefghilmnoprstu", k=6)).capitalize() for _ in range(sentences)]
    lines = [f"{name} and " + " ".join(source.choice(part) for part in parts) + "." for name in names]
    return "\n".join(" ".join(lines[at : at + 5]) for at in range(0, sentences, 5))


def write_documents(path: Path, texts: list[str], files: int = 1) -> Path:
    """JSONL in `files` files, in turn."""
    path.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[number::files])
        (path / f"{number:02d}.jsonl").write_text(lines)
    return path


def add_what_is_passed_over(folder: Path) -> None:
    """To each file of documents a row without text and one that is no JSON, and beside them a file that is not read."""
    for file in sorted(folder.glob("*.jsonl")):
        with file.open("a") as rows:
            rows.write('{"text": null}\n{"text": "cut\n')
    (folder / "notes.pdf").touch()


def mixed_documents() -> list[str]:
    """40 stories, 6 of them again, 5 again but for a word, 3 in French, 2 with an eval's item, 4 too short; shuffled."""
    stories = [story(seed) for seed in range(40)]
    near = [f"Well.\n{text}" for text in stories[10:15]]
    bad = [f"{story(90 + n)}\n{QUESTION}? {ANSWER}." for n in range(2)]
    texts = [
        *stories,
        *stories[:6],
        *near,
        *(FRENCH * 8 + str(n) for n in range(3)),
        *bad,
        *(f"This is far too short, said the teacher of class {n}." for n in range(4)),
    ]
    random.Random(1).shuffle(texts)
    return texts


def write_recipe(folder: Path, evals: bool = True) -> Path:
    """A recipe with a rule of each kind."""
    (folder / "evals.jsonl").write_text(json.dumps({"question": QUESTION, "answer": ANSWER}) + "\n")
    text = """
language: {keep: [en]}
filters:
  gopher_quality: {min_doc_words: 40, max_non_alpha_words_ratio: 0.5}
exact_dedup: true
minhash_dedup: true
"""
    if evals:
        text += f"decontaminate: {{evals: {{captains: {folder}/evals.jsonl}}, keys: [question, answer]}}\n"
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path
