"""The trained models by name."""

import scipy.sparse as sp

from apps.recsys.config import Config
from apps.recsys.models.lightgcn import LightGCN
from apps.recsys.models.mf import MF
from apps.recsys.models.network import Network


def build(config: Config, train: sp.csr_array) -> Network:
    """The network of `config`, untrained, on its device. train: CSR [U, I]."""
    if config.model == "mf":
        network: Network = MF(train, config.dim, config.l2, config.seed)
    elif config.model == "lightgcn":
        network = LightGCN(train, config.dim, config.layers, config.l2, config.seed)
    else:
        raise ValueError(f"model must be lightgcn or mf, got {config.model!r}")
    return network.to(config.device)
