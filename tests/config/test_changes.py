"""What may change between launches of one run, and what may not."""

from harness.config.changes import changes, recorded, refused
from harness.run.folder import config_as_dict
from tests.config.configs import config


def differences(*overrides: str) -> dict[str, tuple[object, object]]:
    return changes(config_as_dict(config("tiny")), config_as_dict(config("tiny", *overrides)))


def test_same_config_no_difference() -> None:
    assert differences() == {}


def test_learning_rate_may_change_and_is_recorded() -> None:
    found = differences("optim.lr=1e-4")
    assert found == {"optim.lr": (3e-3, 1e-4)}
    assert refused(found) == [] and recorded(found) == found


def test_model_data_and_batch_may_not() -> None:
    stages = "data.stages=[{name: all, weights: {demo: 2.0}}]"
    found = differences("model.hidden_size=256", "data.seed=1", stages, "train.global_batch_size=32")
    text = "\n".join(refused(found))
    assert len(refused(found)) == 4
    assert "model.hidden_size=256: the run was started with 128" in text
    assert "data.stages[0].weights.demo=2.0" in text


def test_a_source_may_move() -> None:
    assert refused(differences("data.sources.demo.path=/elsewhere")) == []


def test_the_mixture_may_change_by_an_entry_alone_and_sources_may_be_added_for_it() -> None:
    entry = "data.change_at=[{step: 10, stages: [{weights: {demo: 1.0, more: 1.0}}]}]"
    found = differences("+data.sources.more.path=x", entry)
    assert refused(found) == []
    assert recorded(found)["data.change_at[0].step"] == (None, 10)
    assert recorded(found)["data.change_at[0].stages[0].weights.more"] == (None, 1.0)


def test_shuffle_and_packing_may_not_change_but_where_tables_lie_may() -> None:
    found = differences("data.shuffle=blocks", "data.packing=best_fit", "data.packing_cache=/elsewhere")
    assert refused(found) == [
        "data.shuffle=blocks: the run was started with sequences",
        "data.packing=best_fit: the run was started with chunk",
    ]


def test_where_it_runs_is_not_part_of_the_lineage() -> None:
    assert recorded(differences("cluster.time=10:00:00", "monitor.port=9000", "follow=true")) == {}


def test_skipping_layout_and_what_watches_the_run_may_change_and_are_recorded() -> None:
    asked = [
        "train.skip=[[5,9]]",
        "parallel.tp=2",
        "train.precision=bf16",
        "train.spike_sigmas=4",
        "train.eval_every=10",
        "train.z_loss=1e-5",
        "optim.ema_decay=0.999",
    ]
    found = differences(*asked)
    assert set(found) == {override.partition("=")[0] for override in asked}
    assert refused(found) == [] and recorded(found) == found
    assert found["train.skip"] == ([], [[5, 9]])


def test_the_optimizer_may_not() -> None:
    assert refused(differences("optim.name=muon")) == ["optim.name=muon: the run was started with adamw"]


def test_the_first_entry_of_a_list_is_recorded_by_its_values() -> None:
    found = differences("schedule.overrides=[{step: 9, lr: 1e-4}]", "+data.validation.web.path=x")
    assert found["schedule.overrides[0].step"] == (None, 9)
    assert found["data.validation.web.path"] == (None, "x")
    assert not {"schedule.overrides", "data.validation"} & set(found)
    assert refused(found) == []
