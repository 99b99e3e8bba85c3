"""What may change between launches of one run, and what may not."""

from harness.config.changes import changes, recorded, refused
from harness.config.compose import compose
from harness.run.folder import config_as_dict


def differences(*overrides: str) -> dict[str, tuple[object, object]]:
    return changes(config_as_dict(compose(["+exp=tiny"])), config_as_dict(compose(["+exp=tiny", *overrides])))


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


def test_a_source_may_move_but_not_vanish() -> None:
    assert refused(differences("data.sources.demo.path=/elsewhere")) == []
    added = differences("+data.sources.more.path=x")
    assert any("data.sources.more" in text for text in refused(added))


def test_where_it_runs_is_not_part_of_the_lineage() -> None:
    assert recorded(differences("cluster.time=10:00:00", "monitor.port=9000", "follow=true")) == {}
