"""The examples in docstrings print what they say."""

import pytest

from tests.examples import assert_examples_hold, modules_with_examples


@pytest.mark.parametrize("name", modules_with_examples("sparsekit"))
def test_examples(name: str) -> None:
    assert_examples_hold(name)
