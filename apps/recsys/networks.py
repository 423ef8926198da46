"""The trained models by name."""

import scipy.sparse as sp

from apps.recsys import augmentation
from apps.recsys.config import Config
from apps.recsys.models.lightgcn import LightGCN
from apps.recsys.models.llmrec import LLMRec
from apps.recsys.models.mf import MF
from apps.recsys.models.multvae import MultVAE
from apps.recsys.models.network import Network
from apps.recsys.models.neumf import NeuMF
from apps.recsys.models.shared_rows import SharedRows


def build(config: Config, train: sp.csr_array) -> Network:
    """The network of `config`, untrained, on its device. train: CSR [U, I]."""
    c = config
    dropout = {"multvae": 0.5}.get(c.model, 0.0) if c.dropout is None else c.dropout
    shared = None
    if c.sharing != "none":
        shared = SharedRows(train.shape, c.dim, c.sharing, c.stored_rows, c.seed)
    build_one = {
        "mf": lambda: MF(train, c.dim, c.l2, c.seed, shared),
        "lightgcn": lambda: LightGCN(train, c.dim, c.layers, c.l2, c.seed, shared),
        "llmrec": lambda: LLMRec(
            train,
            c.dim,
            c.layers,
            c.l2,
            c.seed,
            augmentation.load(c.augmentation),
            c.llmrec,
        ),
        "multvae": lambda: MultVAE(
            train, c.dim, c.hidden, dropout, c.kl, c.anneal, c.seed
        ),
        "neumf": lambda: NeuMF(train, c.dim, c.layers, dropout, c.l2, c.seed),
    }
    return build_one[config.model]().to(config.device)
