"""Small networks of prime sizes, and two slow oracles of per-sample gradient norms."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


class Block(nn.Module):
    """Residual: batch norm, addition and ReLU in place, a strided shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)), inplace=True)
        out = self.norm2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


class Attention(nn.Module):
    """A transformer block before the norm: 2 heads, T tokens."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        heads = self.qkv(self.norm1(x)).view(n, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class TextModel(nn.Module):
    """Token embedding, a block, and a head whose weight is the embedding's."""

    def __init__(self, tied: bool):
        super().__init__()
        self.embedding = nn.Embedding(23, 14, padding_idx=0)
        self.block = Attention(14, 19)
        self.head = nn.Linear(14, 23, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.block(self.embedding(tokens)).mean(1))


def mlp() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 11), nn.ReLU(), nn.Linear(11, 5), nn.Tanh())
    net.append(nn.Linear(5, 3))
    return net, torch.randn(13, 7), torch.randint(0, 3, (13,))


def resnet() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 11, 3, padding=1, bias=False),
        nn.BatchNorm2d(11),
        nn.ReLU(inplace=True),
        Block(11, 13, 1),
        Block(13, 17, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(17, 5),
    )
    x = torch.randn(7, 3, 9, 8)
    net(x)  # running statistics that are not 0 and 1
    return net.eval(), x, torch.randint(0, 5, (7,))


def transformer(tied: bool = False) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(2)
    tokens = torch.randint(0, 23, (7, 5))
    tokens[:, 3] = tokens[:, 1]  # a token twice in a text
    return TextModel(tied).eval(), tokens, torch.randint(0, 23, (7,))


def by_loop(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    masks: dict[str, Tensor] | None = None,
    names: list[str] | None = None,
) -> Tensor:
    """One backward pass a sample, in float64, on plain parameters."""
    rows = []
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for i in range(len(inputs)):
        losses = F.cross_entropy(model(inputs[i : i + 1]), targets[i : i + 1])
        grads = torch.autograd.grad(losses, list(params.values()), allow_unused=True)
        total = torch.zeros((), dtype=torch.float64)
        for name, grad in zip(params, grads, strict=True):
            if grad is not None and (names is None or name in names):
                mask = 1 if masks is None else masks.get(name, 1)
                total += (grad.double() * mask).square().sum()
        rows.append(total.sqrt())
    return torch.stack(rows)


def by_vmap(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """torch.func.vmap(grad)."""
    params = {n: p.detach() for n, p in model.named_parameters()}

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, params, (x.unsqueeze(0),))
        return F.cross_entropy(logits, y.unsqueeze(0))

    with sdpa_kernel(SDPBackend.MATH):  # the others have no rule in vmap
        grads = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(
            params, inputs, targets
        )
    squares = [g.flatten(1).double().square().sum(1) for g in grads.values()]
    return torch.stack(squares).sum(0).sqrt()
