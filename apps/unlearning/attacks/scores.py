"""What an attacker sees of a record: numbers that tend to be larger for members."""

import torch
import torch.nn.functional as F
from torch import Tensor


def confidence(logits: Tensor, y: Tensor) -> Tensor:
    """Softmax probability of the label, [N] in [0, 1].

    >>> confidence(torch.zeros(1, 4), torch.tensor([2]))
    tensor([0.2500])
    """
    return logits.softmax(1).gather(1, y[:, None]).squeeze(1)


def correctness(logits: Tensor, y: Tensor) -> Tensor:
    """1 where the largest logit is the label's, [N]."""
    return (logits.argmax(1) == y).to(logits.dtype)


def entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Minus the entropy of the prediction, sum p log p, in nats, [N]; labels unused.

    >>> entropy(torch.zeros(1, 2), torch.tensor([0]))
    tensor([-0.6931])
    """
    return -torch.special.entr(logits.softmax(1)).sum(1)


def modified_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Minus Song and Mittal's modified entropy, [N]:

    (1 - p_y) log p_y + sum over i != y of p_i log(1 - p_i).

    Source: Song & Mittal 2021, arXiv 2003.10595, eq. 8. Differs from the code that came
    with Jia et al. 2023, which uses log p_i in the sum and mixes records up.

    >>> modified_entropy(torch.zeros(1, 2), torch.tensor([0]))  # log(1/2)
    tensor([-0.6931])
    """
    log_p = F.log_softmax(logits, 1)
    p = log_p.exp()
    own = F.one_hot(y, logits.shape[1]).bool()
    log_others = torch.log1p(-p.clamp(max=1 - torch.finfo(p.dtype).eps))
    return torch.where(own, (1 - p) * log_p, p * log_others).sum(1)


def logit_confidence(logits: Tensor, y: Tensor) -> Tensor:
    """log p_y - log sum_{i != y} p_i, [N], from the logits: never infinite.

    >>> logit_confidence(torch.tensor([[2.0, 0.0], [200.0, 0.0]]), torch.tensor([0, 0]))
    tensor([  2., 200.])
    """
    own = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], -torch.inf).logsumexp(1)
    return own - others
