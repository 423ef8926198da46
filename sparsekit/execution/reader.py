"""Runs an exported network where there is no torch: numpy and numba are enough.

    python -m sparsekit.execution.reader model.safetensors input.npy output.npy

    model = load("model.safetensors")
    logits = model(images)  # [N, 3, 32, 32] float32 -> [N, 10]

The first call with a batch size plans it and takes its memory; the first on a machine
compiles the kernels, which takes seconds and is kept on disk.
"""

import sys
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsekit.execution.engine import Plan
from sparsekit.execution.model_file import DamagedFile, Network, parse

__all__ = ["DamagedFile", "Model", "load", "loads"]

PLANS = 4  # batch sizes whose memory is kept
MEMORY = 4 << 30  # bytes


class Model:
    """A network that is called with an array. Threads may share it; they take turns.

    Args:
        network: from `sparsekit.execution.model_file.parse`.
        memory: most bytes that results may take; a call that needs more raises
            MemoryError. A file may come from anywhere.
    """

    def __init__(self, network: Network, memory: int = MEMORY):
        self.network = network
        self.memory = memory
        self._plans: OrderedDict[int, Plan] = OrderedDict()
        self._turn = threading.Lock()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.network.input_shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.network.shapes[self.network.output]

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """[N, *input_shape] float32 -> [N, *output_shape], a new array.

        Raises:
            ValueError: for any other shape or type.
        """
        if x.dtype != np.float32 or x.shape[1:] != self.input_shape:
            raise ValueError(
                f"expected float32 of shape [N, {', '.join(map(str, self.input_shape))}"
                f"], got {x.dtype} of shape {list(x.shape)}"
            )
        if not len(x):
            return np.empty((0, *self.output_shape), np.float32)
        with self._turn:
            plan = self._plan(len(x))
            y = plan.run(x.reshape(len(x), -1))
            return y.reshape(len(x), *self.output_shape).copy()

    def _plan(self, batch: int) -> Plan:
        if batch not in self._plans:
            while len(self._plans) >= PLANS:
                self._plans.popitem(last=False)
            self._plans[batch] = Plan(self.network, batch, self.memory)
        self._plans.move_to_end(batch)
        return self._plans[batch]


def load(path: str | Path, memory: int = MEMORY) -> Model:
    """The model in a file that `sparsekit.execution.export.save` wrote.

    Raises:
        DamagedFile: (a ValueError) if it is no such file, naming what is wrong.
    """
    try:
        return loads(Path(path).read_bytes(), memory)
    except DamagedFile as error:
        raise DamagedFile(f"{path}: {error}") from None


def loads(content: bytes, memory: int = MEMORY) -> Model:
    """`load` for the bytes of a file."""
    return Model(parse(content), memory)


def main(arguments: list[str]) -> int:
    """Reads an input, writes the output; 0 if that went well."""
    if len(arguments) != 3:
        print(__doc__.split("\n")[2].strip(), file=sys.stderr)
        return 2
    model_path, input_path, output_path = arguments
    try:
        model = load(model_path)
        x = np.load(input_path, allow_pickle=False)
        np.save(output_path, model(np.asarray(x, np.float32)))
    except (OSError, ValueError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
