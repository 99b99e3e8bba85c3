"""What is typed is what is meant: names and values as text, sweeps, and what is told of those that can't be used."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.keys import known_keys, type_of
from harness.config.overrides import expand_sweep, parse, typed_text
from harness.config.schema import MonitorMode, PipelineSchedule, RootConfig
from harness.launch.sweep import composed
from harness.run.folder import RunFolder

AS_TYPED = ("1.10", "2026_11_27", "12:00:00", "012345", "1e5", "0x1F", "on", "off", "yes", "no", "true", "False", "2026-11-27",
            "1_000", "+1", "-1.50", "inf", ".5", "0o17", "1.", "nan")  # fmt: skip
"""Texts that YAML 1.1 or Hydra's grammar would make another value of."""
TEXT_KEYS = [key for key in known_keys() if type_of(key) is str and key not in ("run.name", "exp")]
WITH_TEXT = [*TEXT_KEYS, "cluster.sbatch.comment", "data.sources.demo.id", "data.sources.demo.path"]


def text_at(config: RootConfig, key: str) -> Any:
    return OmegaConf.select(OmegaConf.structured(config), key)


@pytest.mark.parametrize("text", ["1.10", "2026_11_27", "12:00:00", "true"])
def test_every_key_that_holds_text_holds_what_was_typed(text: str, tmp_path: Path) -> None:
    """On the command line, and in config.yaml read back."""
    typed = compose(["+exp=tiny", *(f"{key}={text}" for key in WITH_TEXT)])
    run = RunFolder(tmp_path)
    run.save_config(typed)
    assert {key: text_at(typed, key) for key in WITH_TEXT} == dict.fromkeys(WITH_TEXT, text)
    assert {key: text_at(run.load_config(), key) for key in WITH_TEXT} == dict.fromkeys(WITH_TEXT, text)


def test_every_text_stays_what_was_typed(tmp_path: Path) -> None:
    """On the command line, in lists, in files, and in config.yaml read back."""
    wanted = {f"k{number}": text for number, text in enumerate(AS_TYPED)}
    flags = [f"cluster.sbatch.{key}={text}" for key, text in wanted.items()]
    typed = compose(["+exp=tiny", *flags, f"cluster.exclude=[{','.join(AS_TYPED)}]"])
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "ours.yaml").write_text(
        f"# @package _global_\ndefaults: [tiny]\ncluster: {{exclude: [{', '.join(AS_TYPED)}], sbatch: "
        f"{{{', '.join(f'{key}: {text}' for key, text in wanted.items())}}}}}\n"
    )
    run = RunFolder(tmp_path)
    run.save_config(typed)
    for config in (typed, compose(["+exp=ours"], tmp_path), run.load_config()):
        assert (config.cluster.sbatch, config.cluster.exclude) == (wanted, list(AS_TYPED))


def test_every_text_of_a_sweep_is_what_was_typed() -> None:
    combinations = expand_sweep([f"cluster.sbatch.x={','.join(AS_TYPED)}"])
    assert [typed_text(parse(combination)[0]) for combination in combinations] == list(AS_TYPED)


@pytest.mark.parametrize(
    "name", ["1.10", "2026_11_27", "012345", "1e5", "0x1F", "on", "true", "2026-11-27", "sw,lr=0.001", "1_0"]
)
def test_names_are_as_typed(name: str, tmp_path: Path) -> None:
    typed = compose(["+exp=tiny", f"run.name={name}"])
    run = RunFolder(tmp_path)
    run.save_config(typed)
    assert typed.run.name == run.load_config().run.name == name


def test_names_in_files_and_keys_are_as_typed(tmp_path: Path) -> None:
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "1.10.yaml").write_text(
        "# @package _global_\ndefaults:\n  - tiny\nrun: {name: 1.10}\ncluster: {time: 12:00:00, account: 012345}\n"
        "data:\n  sources: {2024_11: {path: on}}\n  stages: [{weights: {demo: 1, 2024_11: 1e0}}]\nmonitor: {mode: off}\n"
        "train: {skip: [[1, 2]]}\n"
    )
    config = compose(["+exp=1.10", "data.stages.0.name=1.10"], tmp_path)
    assert (config.run.name, config.cluster.time, config.cluster.account) == ("1.10", "12:00:00", "012345")
    assert config.data.sources["2024_11"].path == "on" and config.data.stages[0].weights["2024_11"] == 1.0
    assert (config.monitor.mode, config.data.stages[0].name, config.train.skip) == (MonitorMode.off, "1.10", [[1, 2]])


def test_defaults_survive_being_typed() -> None:
    """Every default that is a number or a truth means itself when its text is typed."""
    before = compose(["+exp=tiny"])
    keys = [key for key in known_keys() if key != "checkpoint.async" and not is_dataclass(type_of(key))]
    numbers = {key: value for key in keys if isinstance(value := text_at(before, key), int | float)}
    after = compose(["+exp=tiny", *(f"{key}={value}" for key, value in numbers.items())])
    assert {key: text_at(after, key) for key in numbers} == numbers and len(numbers) > 50


def test_choices_are_typed_by_their_values() -> None:
    config = compose(["+exp=tiny", "parallel.pp_schedule=1f1b"])
    assert config.parallel.pp_schedule is PipelineSchedule.one_f_one_b


@pytest.mark.parametrize(
    "path", ["~/data", "/größe/#1!", "a=b", "s3://bucket/x?y=1&z=2", "C:\\x".replace("\\", "/"), "${runs_dir}/x"]
)
def test_paths_need_no_quotes_unless_they_could_mean_something_else(path: str) -> None:
    config = compose(["+exp=tiny", f"data.sources.demo.path={path}"])
    assert config.data.sources["demo"].path == path.replace("${runs_dir}", "runs")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("cluster.exclude=n4", "cluster.exclude=n4: expected a list; write cluster.exclude=[n4]"),
        ("cluster.exclude=[[n4]]", "cluster.exclude[0]=[n4]: expected text"),
        ("run.name=null", "run.name=null: expected text; quote the word null if it is meant"),
        ("run.name=???", "run.name=???: ??? stands for a value that is missing; give one"),
        ("run.name=${nope}", "run.name: Interpolation key 'nope' not found"),
        ("run.name=${run.name}", "run.name: Recursive interpolation detected"),
        ("optim.lr=${exp}", "optim.lr: While dereferencing interpolation '${exp}'"),
        ("run.name='a", "run.name='a: not an override"),
        ("train.steps=1e3", "train.steps=1e3: expected a whole number"),
        ("train.steps=" + "9" * 5000, "train.steps=9999"),
        ("train.skip=[[1,x]]", "train.skip[0][1]=x: expected a whole number"),
        ("train.precision=fp64", "train.precision=fp64: expected one of bf16, fp8, fp32"),
        ("+train.seed=1", "train.seed=1: has a value already; leave out the + to change it"),
        ("~train", "~train: can't be removed, only changed"),
        ("~data.sources.nope", "~data.sources.nope: "),
        ("model=null", "model=null: choose one of llama_1b"),
        ("+model@foo=tiny", "model@foo=tiny: a group has one place; write model=tiny"),
        ("hydra.verbose=true", "hydra.verbose=true: no such key"),
        ("optim.lr=interval(0,1)", "optim.lr=interval(0,1): several values; give one"),
        ("optim.lr=nope(1)", "optim.lr=nope(1): Unknown function 'nope'"),
        ("optim.lr=" + "[" * 1000, "optim.lr=[[["),
        ("", "'': not an override"),
        ("=1", "=1: not an override"),
    ],
)
def test_one_sentence_for_what_can_not_be_used(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["+exp=tiny", override])
    (problem,) = caught.value.problems
    assert problem.startswith(says) and "\n" not in problem and len(problem) < 400


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("cluster: {exclude: n4}", "cluster.exclude=n4: expected a list; write cluster.exclude=[n4]"),
        ("train: {steps: [1}", "not YAML: "),
        ("train: {steps: 1, steps: 2}", "steps is there twice (line 2"),
        ("- a", "expected keys with values"),
        ("train: {stepz: 1}", "train.stepz: no such key; did you mean train.steps"),
        ("train: {steps: 12:00:00}", "train.steps=12:00:00: expected a whole number"),
        ("run: {name: !!python/name:os.system x}", "not YAML: "),
        ("a: " + "[" * 3000, "nested too deeply"),
    ],
)
def test_what_is_wrong_in_a_file_names_the_file(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "ours.yaml").write_text("# @package _global_\n" + content)
    with pytest.raises(ConfigError) as caught:
        compose(["+exp=ours"], tmp_path)
    (problem,) = caught.value.problems
    assert says in problem and "ours" in problem


def test_an_experiment_without_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "ours.yaml").write_text("train: {steps: 1}\n")
    with pytest.raises(ConfigError, match="its first line must be `# @package _global_`"):
        compose(["+exp=ours"], tmp_path)


class TestSweep:
    def names(self, *overrides: str) -> list[str]:
        return [config.run.name for config in composed(["+exp=tiny", *overrides], None, multirun=True)]

    def problems(self, *overrides: str, multirun: bool = True) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            composed(["+exp=tiny", *overrides], None, multirun)
        return caught.value.problems

    @pytest.mark.parametrize(
        ("override", "names"),
        [
            ("optim.lr=1e-4,2e-4", ["tiny,lr=1e-4", "tiny,lr=2e-4"]),
            ("model.init_from=a/hf,b/hf", ["tiny,init_from=a-hf", "tiny,init_from=b-hf"]),
            ("cluster.sbatch.comment=1.10,1.1", ["tiny,comment=1.10", "tiny,comment=1.1"]),
            ("optim.betas=[0.9,0.95],[0.9,0.99]", ["tiny,betas=0.9-0.95", "tiny,betas=0.9-0.99"]),
            ("train.seed=-1,1", ["tiny,seed=-1", "tiny,seed=1"]),
            ("train.seed=range(0,2)", ["tiny,seed=0", "tiny,seed=1"]),
            ("optim.lr=sort(1e-3,1e-4)", ["tiny,lr=1e-4", "tiny,lr=1e-3"]),
            ("schedule=glob(c*)", ["tiny,schedule=cosine"]),
            ("run.name=1.10,1.1", ["1.10", "1.1"]),
        ],
    )
    def test_a_printed_name_can_be_typed_back(self, override: str, names: list[str]) -> None:
        assert self.names(override) == names
        for name in names:  # without quotes
            assert composed(["+exp=tiny", f"run.name={name}"], None, multirun=False)[0].run.name == name

    def test_a_long_value_is_cut_and_told_apart(self) -> None:
        first, second = self.names(f"data.tokenizer={'/a' * 90}/x,{'/a' * 90}/y")
        assert first != second and len(first) < 80

    @pytest.mark.parametrize(
        ("overrides", "says"),
        [
            (["optim.lr=1e-4,1e-4"], "run.name=tiny,lr=1e-4: 2 runs of the sweep would have this name"),
            (["model.init_from=a/b,a-b"], "run.name=tiny,init_from=a-b: 2 runs"),
            (["run.name=a,b", "train.seed=1,2"], "run.name=a: 2 runs"),
            ([f"run.name={'a' * 125}", "train.seed=1,2"], "132 characters are too long"),
            (["optim.lr=interval(0,1)"], "optim.lr=interval(0,1): an interval has no list of values"),
            (["optim.lr=glob(*)"], "optim.lr=glob(*): glob() chooses between the configs of a group"),
            (["model=glob(zzz)"], "model=glob(zzz): no value at all"),
            (["train.seed=range(0,3,0)"], "train.seed=range(0,3,0): "),
            (["train.seed=range(0,inf)"], "-m: the sweep has more than 1,000 runs"),
            (["train.seed=range(0,600)", "optim.lr=1e-3,1e-4"], "-m: the sweep has more than 1,000 runs"),
        ],
    )
    def test_what_makes_no_sweep(self, overrides: list[str], says: str) -> None:
        assert says in self.problems(*overrides)[0]

    def test_the_problems_of_all_runs_are_told(self) -> None:
        found = self.problems("optim.lr=1e-4,x", "train.steps=y,3")
        assert found == ["train.steps=y: expected a whole number", "optim.lr=x: expected a number"]

    def test_a_list_without_brackets(self) -> None:
        (found,) = self.problems("cluster.exclude=n4,n5", multirun=False)
        assert found.endswith("a list is written cluster.exclude=[n4,n5]")


def test_the_types_of_all_keys_are_known() -> None:
    assert all(type_of(key) is not None for key in known_keys())
    assert {key.split(".")[0] for key in known_keys()} == {field.name for field in fields(RootConfig)}
