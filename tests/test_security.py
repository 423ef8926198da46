"""No way of reading a file can run code: every call that could is found in the source.

What hostile files of a format do is tested beside its reader: `test_arrays.py` (.npz),
`test_tensor_file.py` (safetensors), `test_toml.py`, `test_runs.py` (checkpoints),
`test_receipt.py`, `test_reading.py` (tables), `test_streams.py` (image folders).
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("sparsekit", "apps", "book", "benchmarks")
FILES = sorted(path for name in FOLDERS for path in (ROOT / name).rglob("*.py"))

# Never, whatever the arguments.
FORBIDDEN = {
    "eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads",
    "pickle.Unpickler", "dill.load", "joblib.load", "marshal.loads", "shelve.open",
    "yaml.load", "yaml.unsafe_load", "tempfile.mktemp", "pandas.read_pickle",
    "pd.read_pickle", "torch.jit.load", "torch.hub.load",
}  # fmt: skip
# Only with this argument written out.
REQUIRED = {
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "torch.load": ("weights_only", True),
}
# Compiles what torch.fx wrote for a model that is in memory already.
EXCEPTIONS = {("sparsekit/execution/network.py", "exec")}


def test_no_call_can_run_what_a_file_holds() -> None:
    assert len(FILES) > 200
    found = {
        (str(path.relative_to(ROOT)), call)
        for path in FILES
        for call in dangerous(path.read_text("utf-8"))
    }
    assert found == EXCEPTIONS


@pytest.mark.parametrize(
    "source",
    [
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.loads(content)",
        "subprocess.run(text, shell=True)",
        "subprocess.Popen(text, shell=flag)",
        "exec(text)",
    ],
)
def test_the_search_finds(source: str) -> None:
    assert list(dangerous(source))


@pytest.mark.parametrize(
    "source",
    [
        "np.load(path, allow_pickle=False)",
        "torch.load(path, weights_only=True)",
        "subprocess.run([sys.executable, path])",
        "model.eval()",
    ],
)
def test_the_search_lets_pass(source: str) -> None:
    assert not list(dangerous(source))


def dangerous(source: str) -> Iterator[str]:
    """Names of the calls in Python code that could run what they read."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        argument, value = REQUIRED.get(name, ("shell", False))
        passed = given.get(argument)
        safe = isinstance(passed, ast.Constant) and passed.value is value
        if (
            name in FORBIDDEN
            or (name in REQUIRED and not safe)
            or (name not in REQUIRED and passed is not None and not safe)
        ):
            yield name
