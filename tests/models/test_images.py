"""Images by row, from arrays in files or from memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.models.images import Images

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_images_held_in_memory_are_those_of_the_arrays(dtype):
    generator = np.random.default_rng(0)
    arrays = {name: generator.integers(0, np.iinfo(dtype).max, (300, 2, 4, 6), dtype) for name in "ab"}
    index = pd.DataFrame({"shard": list("ab") * 250, "row": np.arange(500) // 2})
    images = Images(index, arrays)
    held = replace(images, cache=images.all_bytes(CPU))
    rows = generator.permutation(500)[:20]
    assert torch.equal(held.pixels(rows, CPU), images.pixels(rows, CPU))
    assert images.pixels(rows, CPU)[3, 1, 2, 5] == pytest.approx(
        arrays["ab"[rows[3] % 2]][rows[3] // 2, 1, 2, 5] / np.iinfo(dtype).max
    )
    # Without the arrays, pixels can come from memory alone.
    assert torch.equal(replace(held, index=index.head(0)).pixels(rows, CPU), images.pixels(rows, CPU))


def test_on_a_cpu_nothing_is_copied_and_waiting_is_counted():
    images = Images(pd.DataFrame({"shard": ["a"], "row": [0]}), {"a": np.ones((1, 1, 4, 4), np.uint8)})
    assert images.cached(CPU) is images
    images.pixels([0], CPU)
    assert images.waited.seconds > 0
