"""What a recipe drops, and how it is accounted for."""

import itertools
import json
from pathlib import Path

import pytest
from datatrove.executor.local import LocalPipelineExecutor

import harness.data.preparation.inputs as inputs_module
from harness.data.__main__ import main
from harness.data.preparation.job import Job
from harness.data.preparation.prepare import Request, prepare
from harness.data.preparation.stages import Stage
from tests.data.preparation.conftest import ANSWER, mixed_documents, story, write_documents, write_recipe
from tests.data.preparation.test_prepare import documents


@pytest.fixture(scope="module")
def dropped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output made with every kind of rule, in several tasks."""
    root = tmp_path_factory.mktemp("dropped")
    texts = write_documents(root / "in", mixed_documents(), files=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs_module, "TASK_BYTES", 20_000)
        prepare(Request(str(texts), root / "out", vocab_size=600, recipe=write_recipe(root), keep_removed=1))
    return root / "out"


def test_what_is_left(dropped: Path) -> None:
    left = documents(dropped)
    stories = [story(seed) for seed in range(40)]
    assert len(left) == 40
    assert {text.removeprefix("Well.\n") for text in left} == set(stories)


def test_every_dropped_document_is_counted(dropped: Path) -> None:
    steps = json.loads((dropped / "manifest.json").read_text())["steps"]
    found = {step["step"]: (step["documents_in"], step["documents"], step.get("dropped", {})) for step in steps}
    assert found == {
        "read": (60, 60, {}),
        "language": (60, 57, {"fr": 3}),
        "gopher_quality": (57, 53, {"gopher_short_doc": 4}),
        "decontaminate": (53, 51, {"captains": 2}),
        "exact_dedup": (51, 45, {"duplicate": 6}),
        "minhash_dedup": (45, 40, {"duplicate": 5}),
    }
    assert steps[1]["languages"] == {"en": 57}
    assert steps[0]["characters"] == sum(map(len, mixed_documents()))
    assert steps[-1]["characters"] == sum(map(len, documents(dropped)))
    for before, after in itertools.pairwise(steps):
        assert after["characters_in"] == before["characters"]


def test_the_manifest_says_what_was_searched_for(dropped: Path) -> None:
    manifest = json.loads((dropped / "manifest.json").read_text())
    assert manifest["evals"]["captains"] == {
        "items": 1,
        "too_short": 0,
        "n_grams": manifest["evals"]["captains"]["n_grams"],
    }
    assert manifest["made_from"]["recipe"]["filters"]["gopher_quality"]["min_doc_words"] == 40
    assert {entry["name"] for entry in manifest["files"] if entry["name"].endswith(".sums")} == {
        f"{file.name}.sums" for file in dropped.glob("*.ds")
    }


def test_a_sample_of_what_was_removed(dropped: Path) -> None:
    removed = dropped / "logs" / "removed"
    assert sorted(folder.name for folder in removed.iterdir()) == sorted(
        ["language", "gopher_quality", "decontaminate", "exact_dedup", "minhash_dedup"]
    )
    for folder in removed.iterdir():
        for file in folder.iterdir():
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            assert len(lines) == 1  # one for each reason and task, and each step here has one reason
    example = json.loads(next((removed / "decontaminate").iterdir()).read_text())
    assert ANSWER in example["text"] and example["metadata"]["contaminated_task"] == "captains"


def test_nothing_but_the_output_is_left(dropped: Path) -> None:
    assert {entry.name.split(".")[0] for entry in dropped.parent.iterdir()} == {"in", "out", "evals", "recipe"}
    names = {str(file.relative_to(dropped)) for file in dropped.rglob("*")}
    assert not [name for name in names if name.startswith("work") or name.endswith((".pik", "job.json", "lock"))]


def test_an_eval_set_that_removes_everything(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    texts = write_documents(tmp_path / "in", [f"{story(n)}\n{ANSWER}" for n in range(5)])
    (tmp_path / "evals.jsonl").write_text(json.dumps({"text": ANSWER}) + "\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"decontaminate: {{evals: {{all: {tmp_path}/evals.jsonl}}}}")
    assert main(["prepare", "--input", str(texts), "--output", f"{tmp_path}/out", "--recipe", str(recipe)]) == 2
    error = capfd.readouterr().err
    assert "error: --recipe drops every document:\n  read: 5 documents\n" in error
    assert "  decontaminate: 0 of 5 documents kept (dropped: all 5)" in error
    assert not (tmp_path / ".out.partial").exists()


def test_an_eval_set_that_cannot_be_found_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    texts = write_documents(tmp_path / "in", [story(1)])
    (tmp_path / "evals.jsonl").write_text(json.dumps({"text": "Yes."}) + "\n")
    recipe = tmp_path / "recipe.yaml"
    command = ["prepare", "--input", str(texts), "--output", f"{tmp_path}/out", "--recipe", str(recipe)]
    recipe.write_text(f"decontaminate: {{evals: {{short: {tmp_path}/evals.jsonl}}}}")
    assert main(command) == 2
    assert "decontaminate.evals.short:" in (error := capfd.readouterr().err)
    assert "holds 1 item(s), none of 12 words or more in text. Lower decontaminate.n_grams" in error
    recipe.write_text(f"decontaminate: {{evals: {{short: {tmp_path}/evals.jsonl}}, keys: [query]}}")
    assert main(command) == 2
    assert "line 1: no key 'query'; its keys: text. Set decontaminate.keys." in capfd.readouterr().err


def test_tasks_that_keep_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs_module, "TASK_BYTES", 1000)
    stories = [story(n) for n in range(3)]
    texts = write_documents(
        tmp_path / "in", ["short a", stories[0], "short b", stories[1], "short c", stories[1]], files=6
    )
    manifest = prepare(Request(str(texts), tmp_path / "out", vocab_size=300, recipe=write_recipe(tmp_path)))
    assert manifest is not None and manifest["documents"] == 2
    assert sorted(stories[:2]) == documents(tmp_path / "out")
    assert len(manifest["token_files"]) == 2


def test_what_is_not_read_of_an_eval_set_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = write_documents(tmp_path / "in", mixed_documents())
    evals = write_documents(tmp_path / "evals", [ANSWER])
    (evals / "more.csv").write_text(ANSWER)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"decontaminate: {{evals: {{captains: {evals}}}}}")
    manifest = prepare(Request(str(texts), tmp_path / "out", vocab_size=300, recipe=recipe))
    assert manifest is not None and manifest["steps"][-1]["dropped"] == {"captains": 2}
    assert "note: eval set captains: passed over 1 file (unknown suffix 1)\n" in capsys.readouterr().out


def test_filters_that_leave_no_text(tmp_path: Path) -> None:
    """C4's drops lines, and a document may have none left."""
    texts = write_documents(tmp_path / "in", [story(1), "no end", story(2), "nor here"])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("filters: {c4_quality: {min_num_sentences: -1, split_paragraph: true}}\nexact_dedup: true\n")
    manifest = prepare(Request(str(texts), tmp_path / "out", vocab_size=300, recipe=recipe))
    assert manifest is not None and manifest["documents"] == 2
    found = [(step["step"], step["documents"], step.get("dropped", {})) for step in manifest["steps"]]
    assert found == [
        ("read", 4, {}),
        ("c4_quality", 4, {}),
        ("without_text", 2, {"without_text": 2}),
        ("exact_dedup", 2, {}),
    ]


def test_broken_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    texts = write_documents(tmp_path / "in", [story(n) for n in range(4)])
    file = texts / "00.jsonl"
    file.write_bytes(
        file.read_bytes() + b'{"text": "cut\n' + b'{"text": "\xff"}\n' + json.dumps({"text": story(5)}).encode()
    )
    command = ["prepare", "--input", str(texts), "--output", f"{tmp_path}/out", "--vocab-size", "300"]
    assert main(command) == 2
    assert f"{file} line 5: not JSON" in (error := capfd.readouterr().err)
    assert "Mend it, or allow some with --max-bad-lines." in error
    assert main([*command, "--max-bad-lines", "1"]) == 2
    assert f"{file} line 6: not JSON" in (error := capfd.readouterr().err)
    assert "It is bad row number 2 of this file: more than --max-bad-lines 1." in error
    assert main([*command, "--max-bad-lines", "2"]) == 0
    assert "passed over 2 rows (bad row 2) (listed in passed_over.jsonl)" in capfd.readouterr().out
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["bad_lines"] == 2 and manifest["documents"] == 5
    [entry] = [json.loads(line) for line in (tmp_path / "out" / "passed_over.jsonl").read_text().splitlines()]
    assert (entry["file"], entry["reason"], entry["rows"]) == (str(file), "bad row", 2)
    assert [place.split(": ")[0] for place in entry["where"]] == ["line 5", "line 6"]


def test_exact_duplicates_found_by_several_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with thousands of input files: each task looks at a range of the hashes."""

    def run_here(job: Job, stage: Stage, todo: list[int], workers: int | None) -> None:
        for rank in todo:
            logs = str(job.logs(stage.name))
            LocalPipelineExecutor(stage.pipeline(), tasks=stage.tasks, logging_dir=logs)._run_for_rank(rank)

    monkeypatch.setattr("harness.data.preparation.stages.TASKS_PER_EXACT_FINDER", 2)
    monkeypatch.setattr("harness.data.preparation.local._run_stage", run_here)
    monkeypatch.setattr(inputs_module, "TASK_BYTES", 5000)
    texts = write_documents(tmp_path / "in", mixed_documents(), files=8)
    (tmp_path / "recipe.yaml").write_text("exact_dedup: true")
    manifest = prepare(Request(str(texts), tmp_path / "out", vocab_size=500, recipe=tmp_path / "recipe.yaml"))
    assert manifest is not None and manifest["documents"] == 54
    assert len(list((tmp_path / "out" / "logs" / "exact" / "completions").iterdir())) == 4
    assert len(set(documents(tmp_path / "out"))) == 54
