"""Replay a trace through the scheduler in virtual time, and through what others do instead.

    machine       devices and models: bytes, load seconds, tokens per second
    trace         requests of clients that wait for their answers; JSONL; a router's journal
    clients       the seeded generator: chat, agent, batch, editor, side calls, embeddings; the named traces
    world         virtual time; holds deciders to the rules
    resident      bookkeeping and a memory ledger for deciders that are not the core
    baselines     llama.cpp's router, llama-swap, Ollama
    clairvoyant   what could have been reached with knowledge of the future
    report        figures and the table
    compare       who takes part, side by side

What it leaves out: prompt processing slows nobody down beside it, loads do not share a disk, answers do not
depend on the device. What it keeps: clients that wait, think, alternate, give up and come back; memory that
comes back late; prefixes that an evicted model has to read again.
"""

from router.simulate.clients import TRACES, generate
from router.simulate.compare import CONTESTANTS, Comparison, average, compare
from router.simulate.report import SLO_SECONDS, Figures, as_json, measure, table
from router.simulate.trace import Request, Trace, read_trace, write_trace
from router.simulate.world import BrokenRule, Decider, Outcome, Overcommitted, World

__all__ = [
    "CONTESTANTS",
    "SLO_SECONDS",
    "TRACES",
    "BrokenRule",
    "Comparison",
    "Decider",
    "Figures",
    "Outcome",
    "Overcommitted",
    "Request",
    "Trace",
    "World",
    "as_json",
    "average",
    "compare",
    "generate",
    "measure",
    "read_trace",
    "table",
    "write_trace",
]
