"""A bar with an estimate of the time left."""

from tqdm import tqdm


def bar(total: int, title: str | None) -> tqdm:
    """A bar of tqdm's; silent without a title, and where $TQDM_DISABLE says so."""
    if title is None:
        return tqdm(total=total, disable=True)
    return tqdm(total=total, desc=title)  # an explicit False would override the switch
