"""A language model whose weights are on this machine.

    model = Local.smollm()                   # nothing leaves, nothing is paid
    model.likelihoods("The capital of France is", [" Paris", " Rome"])
    model.complete([Prompt("You are brief.", "Name a film.")], Settings(max_tokens=20))

The small default writes little of use. What it can do is say which of some given texts
is likelier, in one pass over the context and one over all texts together.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.recsys.language import smollm
from apps.recsys.language.interface import Likelihoods, Prompt, Reply, Settings

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer


@dataclass
class Local:
    """A causal network of transformers with its tokenizer.

    network: gives logits and keys and values for ids [B, T]. start, end: ids of the
    marks around a message. batch: prompts, or options, at a time. longest: tokens of a
    context; what is further back is cut off. tokens: that were read so far.
    """

    network: Any
    tokenizer: "Tokenizer"
    identity: str
    start: int
    end: int
    batch: int = 16
    longest: int = 2048
    tokens: int = 0

    def __post_init__(self) -> None:
        # Marks inside a text, such as a title, stay text.
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    @classmethod
    def smollm(cls, batch: int = 16) -> "Local":
        """SmolLM2-135M-Instruct; the first use fetches 93 MB and converts them."""
        network, tokenizer = smollm.load()
        start, end = (tokenizer.token_to_id(m) for m in (smollm.START, smollm.END))
        return cls(network, tokenizer, smollm.identity(), start, end, batch)

    def likelihoods(self, context: str, options: Sequence[str]) -> Likelihoods:
        """`sum_t log p(o_kt | context, o_k1 ... o_k,t-1)` of each option k.

        Context and options are tokenised apart: let options begin with a blank. The
        context is read once; its keys and values serve all options.

        Raises ValueError for no options, an empty one, or an empty context.
        """
        import torch

        ids = [self._ids(option) for option in options]
        before = self._ids(context)[-self.longest :]
        if not before or not ids or not all(ids):
            raise ValueError("a context and at least one option, none of them empty")
        self.tokens += len(before) + sum(map(len, ids))
        found = np.zeros(len(ids))
        # Options of one length together: little padding. The order is restored.
        order = np.argsort([len(i) for i in ids], kind="stable")
        with torch.inference_mode():
            read = self.network(
                torch.tensor([before]), use_cache=True, logits_to_keep=1
            )
            first, past = read.logits[0, -1].log_softmax(-1), read.cache
            for some in np.array_split(order, -(-len(order) // self.batch)):
                chosen = [ids[i] for i in some]
                found[some] = self._after(chosen, first, past)
        return Likelihoods(found, np.array([len(i) for i in ids]))

    def complete(
        self, prompts: Iterable[Prompt], settings: Settings
    ) -> Iterator[tuple[int, Reply]]:
        """As `LanguageModel`, in batches; never fails, costs only time."""
        queue = enumerate(prompts)
        # Drawn alone, so that a reply does not depend on its neighbours.
        n = 1 if settings.temperature > 0 else self.batch
        while some := list(islice(queue, n)):
            replies = self._generate([prompt for _, prompt in some], settings)
            for (i, _), reply in zip(some, replies, strict=True):
                yield i, reply

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _after(
        self, ids: list[list[int]], first: "torch.Tensor", past: Any
    ) -> np.ndarray:
        """Log-probabilities of these options, in one pass.

        first: [V] log-probabilities of the first token. past: keys and values of the
        context, which are copied.
        """
        import copy

        import torch
        from torch.nn.utils.rnn import pad_sequence

        lengths = torch.tensor([len(i) for i in ids])
        padded = pad_sequence([torch.tensor(i) for i in ids], batch_first=True)
        here = torch.arange(padded.shape[1]) < lengths[:, None]  # [n, T]
        total = first[padded[:, 0]].double()
        if padded.shape[1] > 1:
            cache = copy.deepcopy(past)
            n_before = cache.get_seq_length()
            cache.batch_repeat_interleave(len(ids))
            mask = torch.cat([torch.ones(len(ids), n_before), here[:, :-1]], 1).long()
            logits = self.network(
                padded[:, :-1], attention_mask=mask, cache=cache
            ).logits  # [n, T-1, V]
            taken = logits.gather(2, padded[:, 1:, None])[..., 0]
            each = (taken - logits.logsumexp(-1)).double()
            total = total + (each * here[:, 1:]).sum(1)
        return total.numpy()

    def _generate(self, prompts: Sequence[Prompt], settings: Settings) -> list[Reply]:
        import torch

        ids = [self._chat(prompt) for prompt in prompts]
        self.tokens += sum(map(len, ids))
        width = max(map(len, ids))
        padded = torch.tensor([[self.end] * (width - len(i)) + i for i in ids])
        mask = torch.tensor([[0] * (width - len(i)) + [1] * len(i) for i in ids])
        how: dict[str, Any] = {"do_sample": False}
        if settings.temperature > 0:
            how = {"do_sample": True, "temperature": settings.temperature,
                   "top_p": settings.top_p, "top_k": 0}  # fmt: skip
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            every = self.network.generate(
                padded, attention_mask=mask, max_new_tokens=settings.max_tokens,
                eos_token_id=self.end, pad_token_id=self.end, **how,
            )  # fmt: skip
        return [
            self._reply(row.tolist(), len(i))
            for row, i in zip(every[:, width:], ids, strict=True)
        ]

    def _reply(self, ids: list[int], n_prompt: int) -> Reply:
        stopped = self.end in ids
        written = ids[: ids.index(self.end)] if stopped else ids
        return Reply(
            text=self.tokenizer.decode(written),
            finish="stop" if stopped else "length",
            prompt_tokens=n_prompt,
            reply_tokens=len(written) + stopped,
        )

    def _chat(self, prompt: Prompt) -> list[int]:
        """A prompt as messages; the marks are set here, texts cannot bring their own.

        A user's text that is too long loses its beginning.
        """
        newline = self._ids("\n")
        roles = {"system": prompt.system, "user": prompt.user}
        ids: list[int] = []
        for role, text in roles.items():
            content = self._ids(text)[-self.longest :]
            ids += [self.start, *self._ids(f"{role}\n"), *content, self.end, *newline]
        return [*ids, self.start, *self._ids("assistant\n")]
