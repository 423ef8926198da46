"""Fine-tuning: every task is trained as if there had been no other. The lower bound."""

from dataclasses import dataclass

from apps.continual.strategy import Strategy


@dataclass
class FineTune(Strategy):
    """Minimises the cross-entropy of the current batch, and forgets.

    loss = CE(f(x), y)
    """
