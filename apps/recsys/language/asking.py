"""Questions put to a language model, each once: what the store has is not asked again.

    replies, bill = ask(model, prompts, Settings(max_tokens=60), store)

Prompts leave in the order of their hashes, so that their order does not tell whose they
are. A reply is kept as soon as it is here: a run that is killed goes on where it was.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, get_args

from apps.recsys.language.answers import Tally, Verdict
from apps.recsys.language.cost import Bill, Prices, estimate, guessed_tokens
from apps.recsys.language.interface import (
    Failure,
    Finish,
    LanguageModel,
    Prompt,
    Reply,
    Settings,
    key,
)
from apps.recsys.language.progress import bar
from apps.recsys.language.prompts import again
from apps.recsys.language.store import Store


class OverBudget(RuntimeError):
    """The rest would cost more than it may; what was answered is kept."""


@dataclass(frozen=True)
class Budget:
    """What one call of `ask` may cost at most, in the currency of the prices."""

    prices: Prices = field(default_factory=Prices)
    most: float | None = None


def ask(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    settings: Settings,
    store: Store,
    *,
    budget: Budget | None = None,
    progress: str | None = None,
) -> tuple[list[Reply | Failure], Bill]:
    """Replies in the order of the prompts, and what they cost.

    Equal prompts are asked once. budget: nothing is sent if the estimate exceeds it,
    and nothing more once it is spent (what is under way then may exceed it). progress:
    title of a bar.

    Raises OverBudget, and what the model raises.
    """
    keys = [key(model.identity, prompt, settings) for prompt in prompts]
    found: dict[str, Reply | Failure] = {}
    for k in dict.fromkeys(keys):
        if (kept := store.get(k)) is not None:
            found[k] = _unpacked(kept)
    waiting = {k: p for k, p in zip(keys, prompts, strict=True) if k not in found}
    missing = dict(sorted(waiting.items()))
    bill = Bill(prompts=len(missing), stored=len(found))
    bill.lost = len(store.lost() & missing.keys())
    budget = budget or Budget()
    _check(budget, missing, settings)
    order, started = list(missing), time.monotonic()
    sending = _sending(missing, store, budget, bill)
    with bar(len(order), progress) as shown:
        for i, result in model.complete(sending, settings):
            if isinstance(result, Failure):
                store.failed(order[i])
            else:
                store.put(order[i], _packed(result))
            found[order[i]] = result
            _note(bill, missing[order[i]], result)
            shown.update()
    bill.seconds = time.monotonic() - started
    if left := len(missing.keys() - found.keys()):
        raise OverBudget(
            f"{left} of {len(missing)} prompts were not sent: {budget.most} are spent"
        )
    return [found[k] for k in keys], bill


def ask_until_accepted(
    model: LanguageModel,
    prompts: Mapping[int, Prompt],
    judge: Callable[[int, str], Verdict],
    settings: Settings,
    store: Store,
    *,
    tries: int = 2,
    budget: Budget | None = None,
    progress: str | None = None,
) -> tuple[dict[int, Any], Tally, Bill]:
    """{name: value of the accepted answer}, what went wrong, and what it cost.

    prompts: {name: question}. judge: of (name, text of the answer). tries: questions a
    name; a further one says why the answer was not accepted. Failures to get an answer
    are counted, and not asked again in this call.
    """
    accepted: dict[int, Any] = {}
    tally, bill = Tally(), Bill()
    waiting = dict(prompts)
    for attempt in range(tries):
        title = progress if attempt == 0 or not progress else f"{progress}, again"
        replies, cost = ask(
            model, list(waiting.values()), settings, store, budget=budget,
            progress=title if waiting else None,
        )  # fmt: skip
        bill.add(cost)
        rejected: dict[int, Prompt] = {}
        for (name, _), reply in zip(waiting.items(), replies, strict=True):
            verdict = judged(reply, partial(judge, name))
            tally.note(verdict)
            if verdict.value is not None:
                accepted[name] = verdict.value
            elif isinstance(reply, Reply):
                rejected[name] = again(prompts[name], verdict.reason or "")
        waiting = rejected
    tally.accepted, tally.dropped = len(accepted), len(prompts) - len(accepted)
    return accepted, tally, bill


def judged(reply: Reply | Failure, judge: Callable[[str], Verdict]) -> Verdict:
    """The verdict on what came back, if anything did."""
    if isinstance(reply, Failure):
        return Verdict(reason=f"failure: {reply.reason}")
    if reply.finish == "too long":
        return Verdict(reason="too long")
    return judge(reply.text)


def unanswered(
    model: LanguageModel, prompts: Sequence[Prompt], settings: Settings, store: Store
) -> list[Prompt]:
    """Those that `ask` would send: for an estimate, or a list of what would leave."""
    by_key = {key(model.identity, prompt, settings): prompt for prompt in prompts}
    return [prompt for k, prompt in sorted(by_key.items()) if store.get(k) is None]


def _sending(
    prompts: Mapping[str, Prompt], store: Store, budget: Budget, bill: Bill
) -> Iterator[Prompt]:
    """Prompts, each noted in the store just before it is sent."""
    for k, prompt in prompts.items():
        if budget.most is not None and bill.cost(budget.prices) >= budget.most:
            return
        store.sending(k)
        yield prompt


def _check(budget: Budget, prompts: Mapping[str, Prompt], settings: Settings) -> None:
    expected = estimate(list(prompts.values()), settings, budget.prices)
    if budget.most is not None and expected.cost > budget.most:
        raise OverBudget(
            f"{expected.prompts} prompts may cost about {expected.cost:.4g}, more than "
            f"{budget.most:.4g}: raise the budget, ask less, or lower max_tokens"
        )


def _note(bill: Bill, prompt: Prompt, result: Reply | Failure) -> None:
    bill.requests += result.requests
    if isinstance(result, Failure):
        return
    counted = (result.prompt_tokens, result.reply_tokens)
    sizes = (prompt.size, len(result.text.encode()))
    sent, came = (
        guessed_tokens(size) if tokens is None else tokens
        for tokens, size in zip(counted, sizes, strict=True)
    )
    bill.guessed += None in counted
    bill.prompt_tokens += sent
    bill.reply_tokens += came


def _packed(reply: Reply) -> str:
    return json.dumps(asdict(reply))


def _unpacked(value: str) -> Reply:
    content = json.loads(value)
    reply = Reply(**content)
    if not isinstance(reply.text, str) or reply.finish not in get_args(Finish):
        raise ValueError("the store holds something else than replies: name another")
    return reply
