"""Where blocks of columns begin, against a count of the columns before each edge."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparsekit.execution.kernels.starts import row_starts


@given(st.data())
def test_row_starts(data) -> None:
    columns, width = data.draw(st.integers(1, 23)), data.draw(st.integers(1, 9))
    rows = data.draw(
        st.lists(st.sets(st.integers(0, columns - 1)).map(sorted), max_size=6)
    )
    crow = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    col = np.array([c for row in rows for c in row], np.int32)
    blocks = -(-columns // width)
    starts = row_starts(crow, col, width, blocks)
    assert starts.shape == (blocks + 1, len(rows))
    assert starts.dtype == np.int32
    for r, row in enumerate(rows):
        for b in range(blocks + 1):
            before = sum(c < b * width for c in row)
            assert starts[b, r] == crow[r] + before
