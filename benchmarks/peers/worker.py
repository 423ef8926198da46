"""What the workers have in common: a case from a file, calls that the parent times."""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp


@dataclass(frozen=True)
class Case:
    """users: [U, d], items: [I, d] float32. train, valid, test: CSR [U, I] of ones."""

    users: np.ndarray
    items: np.ndarray
    train: sp.csr_matrix
    valid: sp.csr_matrix
    test: sp.csr_matrix


def load(folder: Path) -> Case:
    with np.load(folder / "case.npz", allow_pickle=False) as arrays:
        users, items = arrays["users"], arrays["items"]
        parts = [
            sp.csr_matrix(
                (np.ones(len(pairs), np.float32), pairs.T),
                shape=(len(users), len(items)),
            )
            for pairs in (arrays["train"], arrays["valid"], arrays["test"])
        ]
    return Case(users, items, *parts)


def serve(calls: dict[str, Callable[..., Any]]) -> None:
    """Answers lines `[name, *arguments]` of stdin with {"seconds", "cpu", "result"}.

    All in JSON. cpu: seconds of this process's threads. What a library prints goes to
    stderr.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        began, cpu = time.perf_counter(), time.process_time()
        result = calls[name](*arguments)
        answer = {
            "seconds": time.perf_counter() - began,
            "cpu": time.process_time() - cpu,
            "result": result,
        }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
