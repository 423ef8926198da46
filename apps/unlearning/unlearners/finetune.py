"""Fine-tuning: go on training on what stays, and let the rest fade."""

from dataclasses import dataclass

from torch import nn

from apps.unlearning.unlearner import Descent, Problem


@dataclass(frozen=True)
class Finetune(Descent):
    """Minimises the loss on the retain set, from the original weights.

    It relies on catastrophic forgetting, so lr decides what is forgotten: too small
    leaves everything, too large forgets what should stay. With epochs = 0 the model is
    returned as it was.

    Source: Warnecke et al. 2021; Golatkar et al. 2020, as in Jia et al. 2023, arXiv
    2304.04934 ("FT": 10 epochs, lr 0.01).
    """

    def run(self, problem: Problem) -> nn.Module:
        model = problem.model
        optimizer = problem.sgd(self.lr, self.momentum, self.weight_decay)
        for epoch in problem.epochs(self.epochs, optimizer=optimizer):
            problem.train_on(problem.retain)
            for x, y in problem.batches(problem.retain, self.batch, epoch):
                loss = problem.loss(model(x), y).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return model
