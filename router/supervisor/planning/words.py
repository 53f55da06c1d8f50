"""Which models fit together, in words; and what came of the second opinion on one of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from router.memory.estimate.learning import FootprintStatus, Opinion
from router.memory.estimate.values import MIB
from router.scheduler.types import ModelName
from router.supervisor.planning.packing import EXACT_LIMIT
from router.supervisor.planning.together import Fit, ModelDemand, Together, exclusive_pairs


def together_words(together: Together, wishes: Sequence[ModelDemand], *, most: int = 0) -> str:
    """One or more sentences; the contexts of every model that has to do with less are in them."""
    names = and_(wish.model for wish in wishes)
    if together.all is not None:
        return _fit_words(together.all, names, wishes)
    sentences = [_refusal_words(names, wishes, together, most)]
    if together.sets:
        sets = "; ".join(_set_words(fit) for fit in together.sets)
        sentences.append(f"What does fit together: {sets}.")
    elif len(wishes) > 1:
        sentences.append("None of them fits even alone.")
    return " ".join(sentences)


#: What is said of each `FootprintStatus.opinion`; `{mib}` is what it adds.
_OPINIONS: Final[Mapping[Opinion, str]] = {
    "off": "llama-fit-params is not asked: memory.use_llama_fit_params is false.",
    "missing": "There is no llama-fit-params beside llama-server: the estimate stands alone.",
    "open": "llama-fit-params has not been asked yet; it is before the first load, at the latest.",
    "none": "llama-fit-params had no answer: the estimate stands alone.",
    "more": "llama-fit-params counts {mib:.0f} MiB more than the estimate: they are reserved, too.",
    "agrees": "llama-fit-params counts no more than the estimate.",
}


def opinion_words(standing: FootprintStatus) -> str:
    """One sentence."""
    return _OPINIONS[standing.opinion].format(mib=sum(standing.beyond.values()) / MIB)


def _fit_words(fit: Fit, names: str, wishes: Sequence[ModelDemand]) -> str:
    verb = "fit together" if len(wishes) > 1 else "fits"
    if not fit.is_reduced:
        return f"{names} {verb}, at the contexts they ask for: {_contexts(fit)}."
    return f"{names} {verb} with smaller contexts only: {_contexts(fit)}."


def _refusal_words(names: str, wishes: Sequence[ModelDemand], together: Together, most: int) -> str:
    pairs = exclusive_pairs(wishes)
    if pairs:
        a, b = pairs[0]
        return f"{names} are never loaded together: the configuration excludes {a} beside {b}."
    if most and len(wishes) > most:
        return f"{names} are never loaded together: scheduler.models_max is {most}."
    verb = "do not fit together" if len(wishes) > 1 else "does not fit"
    if together.is_exact:
        return f"{names} {verb}, not even with the smallest contexts."
    bound = (
        f"more than {EXACT_LIMIT} models are not searched exhaustively"
        if len(wishes) > EXACT_LIMIT
        else ("the search was cut short")
    )
    return f"No way was found to load {names} together ({bound})."


def _set_words(fit: Fit) -> str:
    return f"{and_(fit.ways)} ({_contexts(fit)})" if len(fit.ways) > 1 else f"{_contexts(fit)} alone"


def _contexts(fit: Fit) -> str:
    """ "a with 8192, b with 4096 (less than it asks for)"."""
    return ", ".join(f"{name} with {_context(fit, name)}" for name in fit.ways)


def _context(fit: Fit, name: ModelName) -> str:
    size = str(fit.ways[name].ctx_size)
    return f"{size} (reduced)" if fit.steps[name] else size


def and_(words: Iterable[str]) -> str:
    items = list(words)
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))
