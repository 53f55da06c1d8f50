"""What happened, for people and programs.

`journal`     the ring of decisions: every event and command, with the time
`events`      the stream of changes of models (`/models/sse`), read from journal and snapshots
`stats`       requests, loads and evictions per model, counted from the journal
`log_record`  log records of requests, formatted in a thread
"""
