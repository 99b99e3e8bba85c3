import pytest

from harness.data.preparation import inputs


@pytest.mark.parametrize(
    ("size", "tasks"),
    [(1, 1), (1 << 25, 1), (1 << 30, 32), (10_000 << 25, 10_000), (10_000 << 27, 10_000), (40_000 << 28, 40_000)],
)
def test_tasks_grow_before_they_become_too_many(size: int, tasks: int) -> None:
    assert inputs._tasks(size) == tasks
