"""The same lists as by numba, ties and all."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.recsys import topk_torch
from apps.recsys.topk import top_k_scores


@given(
    shape=st.tuples(st.integers(1, 13), st.integers(1, 67)),
    k=st.integers(1, 23), levels=st.integers(1, 5), share=st.floats(0, 1),
    cells=st.integers(1, 300), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=80)
def test_equal_to_the_compiled_ranking(shape, k, levels, share, cells, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-levels, levels, shape).astype(np.float32)
    known = sp.csr_array(rng.random(shape) < share, dtype=np.float32)
    users = rng.permutation(shape[0])[: 1 + shape[0] // 2]
    wanted = top_k_scores(lambda u: scores[u].copy(), k, known, users=users)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk_torch, "CELLS", cells)
        on_device = torch.from_numpy(scores)
        items = topk_torch.top_k(lambda u: on_device[u], k, known, users)
    assert items.dtype == np.int32
    np.testing.assert_array_equal(items, wanted.items)


def test_refusals():
    known = sp.csr_array((2, 3), dtype=np.float32)
    bad = torch.tensor([[1.0, 2, 3], [1, torch.nan, 3]])
    with pytest.raises(ValueError, match="NaN"):
        topk_torch.top_k(lambda u: bad[u], 1, known, np.arange(2))
    with pytest.raises(ValueError, match="k must be"):
        topk_torch.top_k(lambda u: bad[u], 0, known, np.arange(2))
