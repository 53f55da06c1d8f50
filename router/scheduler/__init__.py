"""The whole decision, pure: told `(event, now)`, it answers with commands; it never waits and never looks
at a clock.

`types` are the words, `ledger` the arithmetic of bytes, `policy` whom to evict and when, `scheduler` the
decision. The same code serves production (`router.supervisor.pool`), the tests and the simulator
(`router.simulate`).
"""
