"""Every file of a run folder, damaged in every way that people and copies manage: a message with the file's name, or carried on."""

import copy
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.agent.join import join_attempt
from harness.checkpoint.manifest import Manifest
from harness.cluster import submit
from harness.data.__main__ import main as data_main
from harness.data.stage_status import StageStatus, write_status
from harness.export.__main__ import main as export_main
from harness.launch import __main__ as launch_command
from harness.launch import launch as launch_module
from harness.monitor.reaper import Reaper
from harness.observe.staging import SpareCollector
from harness.preflight.check_config import check_config
from harness.recovery.start import Refused, begin, exclude_node
from harness.run.attempt import Outcome, claim, write_end, write_outcome
from harness.run.damage import damages
from harness.run.files import write_json
from harness.run.folder import RunFolder, RunFolderError
from harness.run.node import Node
from harness.status.__main__ import main as status_main
from harness.train.log import write_validation
from tests.tiny import tiny_run

Run = Callable[..., tuple[int, str]]

FILES = (
    "config.yaml", "plan.json", "run.json", "excluded_nodes.json", "calibration.json", "events.jsonl", "metrics.jsonl",
    "validation.jsonl", "stats.jsonl", "attempts/000/attempt.json", "attempts/000/outcome.json", "attempts/000/n1.end.json",
    "attempts/000/n1.data.json", "attempts/000/n1.log", "submit/batch.sh", "submit/controller.log", "checkpoints/step-00000003/manifest.json",
    "checkpoints/latest", "staging/n9.json", "profile", ".launch.lock",
)  # fmt: skip


READ_BY_ALL = ("config.yaml", "run.json", "checkpoints/step-00000003/manifest.json")


def cut_short(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def a_comma_too_many(path: Path) -> None:
    path.write_bytes(path.read_bytes().rstrip().rstrip(b"}]") + b",\n}\n")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "x").touch()


def a_link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def a_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def holding(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def other_types(path: Path) -> None:
    """Every value of the record, or of each line, is of another type."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    odd = {str: {"a": [1]}, int: "x", float: "x", list: 5, dict: "x", bool: [1], type(None): [{}]}
    try:
        changed = [json.dumps({key: odd[type(value)] for key, value in json.loads(line).items()}) for line in lines]
    except (ValueError, AttributeError):
        changed = ["model: 5\nmonitor: {canary_seconds: [1]}\nrun: []"]
    path.write_text("\n".join(changed) + "\n")


def extreme_numbers(path: Path) -> None:
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    try:
        records = [json.loads(line) for line in lines]
        text = [
            json.dumps({k: "HUGE" if isinstance(v, int | float) else v for k, v in record.items()})
            for record in records
        ]
    except (ValueError, AttributeError):
        text = ["HUGE"]
    path.write_text("\n".join(text).replace('"HUGE"', "1e999") + "\n")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut short": cut_short,
    "emptied": holding(b""),
    "a comma too many": a_comma_too_many,
    "a folder": a_folder,
    "a link to nothing": a_link_to_nothing,
    "a link to itself": a_link_to_itself,
    "null": holding(b"null\n"),
    "a number": holding(b"12\n"),
    "an empty object": holding(b"{}\n"),
    "nested deeply": holding(b"[" * 200_000 + b"]" * 200_000),
    "a number of 10,000 digits": holding(b'{"step": ' + b"9" * 10_000 + b"}\n"),
    "binary": holding(bytes(range(256)) * 8),
    "not UTF-8": holding(b'{"step": "\xff\xfe"}\n'),
    "other types": other_types,
    "extreme numbers": extreme_numbers,
}


class Case:
    """A run that has trained to step 3 on this machine and has ended, and what people and programs do with its folder."""

    def __init__(self, root: Path) -> None:
        self.run = tiny_run(root, name="run", data__stage_to=str(root / "scratch"))
        self.config = self.run.load_config()
        run = self.run
        write_json(run.plan_path, {"parameters": 1})
        run.update_record(run_id="run-1", job_id="999999999", cluster="local")
        write_json(run.excluded_path, {"n7": "down"})
        write_json(
            run.calibration_path,
            {"tokens_per_second": 1000.0, "step_seconds": 1.0, "world_size": 1, "tokens_per_step": 512},
        )
        ledger = run.ledger(0, "n1")
        ledger.write("submitted", job_id="999999999", excluded={"n7": "down"})
        ledger.write("restart", step=2, reason="rank_crash", how="requeue", why="x", starts="999999999.0")
        ledger.write("checkpoint", step=3, seconds=0.1, bytes=10)
        ledger.write("config_change", step=3, changes={"optim.lr": [1, 2]})
        for step in (1, 2, 3):
            line = {"step": step, "tokens": 512 * step, "loss": 2.0, "grad_norm": 1.0, "lr": 1e-3, "tokens_per_second": 1000.0,
                    "step_seconds": 0.5, "time": time.time()}  # fmt: skip
            with run.metrics_path.open("a") as f:
                f.write(json.dumps(line) + "\n")
        run.stats_path.write_text('{"step": 1}\n')
        write_validation(run, 3, tokens=1, loss=2.0, seconds=0.1)
        claim(run, "999999998.0", "999999998", ["n1"], "127.0.0.1", 1)
        (run.attempt_dir(0) / "n1.log").write_text("x\n")
        write_json(run.attempt_dir(0) / "n1.data.json", {"time": 1.0, "problem": ""})
        write_end(run, 0, "n1", "failed")
        write_outcome(run, 0, Outcome("failed", "unknown", "why", final=False))
        for name in ("batch.sh", "controller.log"):
            (run.submit_dir / name).write_text("x\n")
        folder = run.checkpoints_dir / "step-00000003"
        folder.mkdir()
        Manifest(3, 1536, 1, 0, {}, (), "2", 1.0).write(folder)
        (run.checkpoints_dir / "latest").write_text("step-00000003\n")
        run.staging_dir.mkdir()
        write_status(run.staging_dir / "n9.json", StageStatus(updated=time.time()))
        (run.path / "profile").write_text("3\n")
        (run.path / ".launch.lock").touch()

    let_in: frozenset[str] = frozenset()
    """Nodes that the damaged file lets back in, in so many words."""

    def status(self) -> int:
        folder = ["--runs-dir", str(self.run.path.parent)]
        return status_main(["run", *folder]) + status_main(folder)

    def dry_run(self) -> int:
        config = copy.deepcopy(self.config)
        config.dry_run = True
        return launch_command._launch_all([config])

    def launch(self) -> int:
        return launch_command._launch_all([copy.deepcopy(self.config)])

    def export(self) -> int:
        return export_main(["run", "--runs-dir", str(self.run.path.parent), "--tokenizer", "none"])

    def show(self) -> int:
        return data_main(["show", "run", "--runs-dir", str(self.run.path.parent), "--step", "2"])

    def stage(self) -> int:
        return data_main(["stage", "--run", str(self.run.path), "--dry-run"])

    def start(self) -> int:
        """What the agent of the head node does before it trains."""
        node = Node("n1", "127.0.0.1", 0, ["n1"], "999999999", 0, on_slurm=False)
        try:
            begin(self.run, self.run.load_config(), node)
        except (Refused, RunFolderError) as error:
            print(error)
            return 1
        attempt = join_attempt(self.run, node)
        exclude_node(self.run, node, "n8", "x")
        assert attempt.number == 1 and {"n7", "n8"} <= self.run.excluded_nodes().keys() | self.let_in
        list(SpareCollector(self.run.staging_dir, ["n1"]).collect())
        return 0

    def preflight(self) -> int:
        finding, _ = check_config(["+exp=tiny", "run.name=run", f"runs_dir={self.run.path.parent}"], None)
        print(finding.failures, finding.warnings)
        return len(finding.failures)

    LOOKS = (status, dry_run, export, show, stage)
    """Change nothing in the folder."""
    READS_LITTLE = (dry_run, export, show, stage)
    STARTS = (start, launch)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("damage"))


@pytest.fixture
def case(original: Case, monkeypatch: pytest.MonkeyPatch) -> Case:
    """The same folder at the same place, whole again."""
    saved = original.run.path.parent / ".saved"
    if not saved.exists():
        shutil.copytree(original.run.path, saved, symlinks=True)
    monkeypatch.setattr(submit, "submit", lambda config, run: "78")
    monkeypatch.setattr(launch_module, "readiness", lambda config: [])
    return original


def restore(case: Case) -> None:
    shutil.rmtree(case.run.path)
    shutil.copytree(case.run.path.parent / ".saved", case.run.path, symlinks=True)


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_file_and_damage(
    case: Case, damage: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No exception comes out of any command, and one that refuses to go on names the file."""
    monkeypatch.setattr(Case, "let_in", frozenset({"n7"} if damage == "an empty object" else ()))
    silent = []
    restore(case)
    fine = {look: look(case) for look in Case.LOOKS}
    capsys.readouterr()
    for name in FILES:
        DAMAGES[damage](case.run.path / name)
        for command in Case.LOOKS + Case.STARTS:
            if command in Case.READS_LITTLE and name not in READ_BY_ALL:
                continue
            if command in Case.STARTS:
                restore(case)
                DAMAGES[damage](case.run.path / name)
            code = command(case)
            printed = "".join(capsys.readouterr())
            assert "Traceback" not in printed, (name, printed)
            if code != fine.get(command, 0) and Path(name).name not in printed:
                silent.append((name, command.__name__, code, printed))
        restore(case)
    assert not silent


@pytest.mark.parametrize("name", ["run.json", "excluded_nodes.json"])
def test_preflight_names_what_a_launch_would_refuse(case: Case, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    restore(case)
    a_comma_too_many(case.run.path / name)
    assert case.preflight() and name in capsys.readouterr().out
    restore(case)


def test_what_cannot_be_read_by_this_user_is_named(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user who is not root meets it."""
    restore(case)
    denied = {case.run.record_path, case.run.excluded_path}
    read = Path.read_text

    def read_text(path: Path, *arguments: object, **options: object) -> str:
        if path in denied:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", read_text)
    found = {damage.path: damage.why for damage in damages(case.run) if damage.refused}
    assert found == dict.fromkeys(denied, "Permission denied")


class TestExcludedNodes:
    """The file that people are told to edit."""

    def test_while_it_is_damaged_the_last_good_list_counts_and_nobody_writes_over_the_edit(
        self, tmp_path: Path
    ) -> None:
        run = RunFolder(tmp_path)
        ledger = run.ledger(0)
        for event in ({"event": "submitted", "excluded": {"n1": "a", "n2": "b"}}, {"event": "node_excluded", "lost": "n3", "why": "c"},
                      {"event": "node_readmitted", "readmitted": "n1"}):  # fmt: skip
            ledger.write(**event)
        run.excluded_path.write_text('{"n2": "b",\n}')
        assert run.excluded_nodes() == {"n2": "b", "n3": "c"}
        assert run.exclude_node("n4", "d") and not run.exclude_node("n3", "d")
        run.readmit_node("n2")
        assert run.excluded_path.read_text() == '{"n2": "b",\n}'

    @pytest.mark.parametrize("content", ['["n2"]', '{"n2": 5}', "n2", "", "null"])
    def test_what_is_no_list_of_nodes(self, tmp_path: Path, content: str) -> None:
        run = RunFolder(tmp_path)
        run.excluded_path.write_text(content)
        (damage,) = damages(run)
        assert damage.refused and str(damage).startswith(f"{run.excluded_path}: ") and '{"NODE": "why"}' in damage.fix


def test_one_bad_line_of_the_ledger_stops_nothing(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    restore(case)
    before = len(case.run.events())
    with case.run.events_path.open("a") as f:
        f.write('{"event": "restart", "time": "yesterday"}\n{"event"\n[1]\n')
    assert len(case.run.events()) == before
    assert case.status() == 0 and "events.jsonl: 3 lines can't be read. They are passed over" in capsys.readouterr().out
    assert case.launch() == 0 and "events.jsonl: 3 lines can't be read" in capsys.readouterr().out
    restore(case)


def test_a_removed_config_is_written_anew_if_the_checkpoints_are_of_that_model(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    restore(case)
    case.run.config_path.unlink()
    manifest = Manifest(3, 1536, 1, 0, {"model.hidden_size": 128}, (), "2", 1.0)
    manifest.write(case.run.checkpoints_dir / "step-00000003")
    assert case.launch() == 2
    assert "model.hidden_size: 128 in the checkpoint, 64 now" in capsys.readouterr().err
    restore(case)
    case.run.config_path.unlink()
    assert case.launch() == 0 and case.run.load_config().model.hidden_size == 64
    restore(case)


def test_a_registration_that_is_damaged_does_not_stop_the_reaper(tmp_path: Path) -> None:
    targets = tmp_path / "targets"
    targets.mkdir()
    good = {
        "targets": ["n1:1"],
        "labels": {"run": "a", "attempt": "0", "node": "n1", "slurm_job_id": ""},
        "lease": time.time(),
    }
    (targets / "good.json").write_text(json.dumps(good))
    for number, (name, damage) in enumerate(DAMAGES.items()):
        path = targets / f"{number}.json"
        path.write_text(json.dumps(good | {"labels": {**good["labels"], "node": f"x{number}"}}))  # type: ignore[dict-item]
        damage(path)
        assert name
    reaper = Reaper(targets, tmp_path / "sd", interval=1.0)
    reaper.poll()
    (target,) = json.loads(reaper.sd_file.read_text())
    assert target["targets"] == ["n1:1"]
