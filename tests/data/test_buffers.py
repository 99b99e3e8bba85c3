import gc

import numpy as np
import torch

from harness.data.buffers import BufferPool, pageable


def test_memory_is_used_again_once_nobody_holds_it() -> None:
    sizes: list[int] = []

    def allocate(size: int) -> np.ndarray:
        sizes.append(size)
        return pageable(size)

    pool = BufferPool((2, 3), allocate)
    first = pool.take()
    assert first.shape == (2, 3) and first.dtype == np.int32 and first.flags.c_contiguous and first.flags.writeable
    first[:] = 7
    view = first[1, 1:]
    tensor = torch.from_numpy(first[0])
    place = first.ctypes.data
    del first
    gc.collect()
    assert pool.take().ctypes.data != place, "a view and a tensor still hold it"
    del view
    second = pool.take()
    assert second.ctypes.data != place, "a tensor still holds it"
    assert tensor.tolist() == [7, 7, 7]
    del tensor
    assert pool.take().ctypes.data == place
    assert sizes == [24, 24] and pool.allocated == 2


def test_a_stream_of_arrays_takes_the_memory_of_those_alive() -> None:
    pool = BufferPool((4,))
    kept = [pool.take() for _ in range(5)]
    for _ in range(100):
        kept.append(pool.take())
        kept.pop(0)
    assert pool.allocated == 6
