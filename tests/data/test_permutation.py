import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.permutation import MAX_SIZE, derive_key, permute


@given(size=st.integers(1, 5000), seed=st.integers(0, 2**63))
def test_is_a_bijection(size: int, seed: int) -> None:
    shuffled = permute(np.arange(size), size, derive_key(seed))
    assert np.array_equal(np.sort(shuffled), np.arange(size))


@given(size=st.integers(2, MAX_SIZE), data=st.data())
def test_large_ranges_stay_inside_and_never_collide(size: int, data: st.DataObject) -> None:
    index = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=50, unique=True)))
    shuffled = permute(index, size, derive_key("large"))
    assert len(set(shuffled.tolist())) == len(index)
    assert shuffled.min() >= 0 and shuffled.max() < size


def test_elements_may_belong_to_different_shuffles() -> None:
    sizes = np.array([10, 1000, 10, 2**40])
    keys = np.stack([derive_key(number) for number in range(4)])
    index = np.array([3, 999, 7, 2**39])
    alone = [permute(index[i : i + 1], int(sizes[i]), keys[i])[0] for i in range(4)]
    assert permute(index, sizes, keys).tolist() == alone


def test_mixes_well() -> None:
    size = 100_000
    shuffled = permute(np.arange(size), size, derive_key("mix"))
    assert abs(np.corrcoef(np.arange(size), shuffled)[0, 1]) < 0.02
    assert (np.abs(np.diff(shuffled)) < 100).mean() < 0.01  # neighbours do not stay neighbours
    # Where the first tenth lands: evenly over the tenths (chi-square with 9 degrees of freedom, p < 1e-6 beyond 48).
    landed = np.bincount(shuffled[: size // 10] * 10 // size, minlength=10)
    assert ((landed - 1000) ** 2 / 1000).sum() < 48


def test_another_key_is_another_shuffle() -> None:
    first, second = (permute(np.arange(1000), 1000, derive_key(7, "windows", "web", epoch)) for epoch in (0, 1))
    assert (first == second).mean() < 0.02


def test_never_changes() -> None:
    """A checkpoint resumed by a later version must see the same order."""
    assert permute(np.arange(8), 1000, derive_key(1, "windows", "web", 0)).tolist() == PINNED


PINNED = [115, 75, 681, 739, 721, 570, 853, 966]


@pytest.mark.parametrize(("index", "size"), [([-1], 10), ([10], 10), ([0], 0), ([0], MAX_SIZE + 1)])
def test_refuses_what_lies_outside(index: list[int], size: int) -> None:
    with pytest.raises(ValueError, match="index must lie in"):
        permute(np.array(index), size, derive_key(0))
