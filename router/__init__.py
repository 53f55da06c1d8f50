"""llama-router: a connection pool whose connections are processes and whose limit is memory.

A client asks for a model by name. The router makes sure that a `llama-server` with that model runs somewhere
it fits, holds a lease on it for as long as the request lives, and passes the bytes through.

The rooms, top to bottom. A room imports only from floors below it; rooms of one line do not know each other.

    __main__ > cli     the command line; each command is a file, imported when asked for
    app                Config -> a running server: every part with its owner, in one ordered list
    api                one file per family of endpoints, each with its ROUTES; errors in OpenAI's shape
    metrics            what Prometheus is told: counted as it happens, or read off a snapshot
    proxy              the data plane: hold a lease, pass bytes both ways
    pool               the async shell: carries out commands, reports events, keeps one timer
    events             what happens to the models, told as it happens: a reader of journal and snapshots
    stats              what each model was asked for and what that cost: another reader of the journal
    stall              whether a child that requests wait for is stuck
    learning           what models really take: predicted, measured, corrected, kept for the next start
    planning           what a load would take and where it would go; which models fit together
    definitions        a catalog entry and the devices -> the core's Model, and how to launch it
    downloads          models from a Hugging Face hub into its cache here, and out of it again
    catalog            which models there are: folders, the Hugging Face cache, presets
    hosts              where children run; the one seam between the scheduler and a machine
    backends           what an inference server is: argv, environment, socket, health path
    presets, estimate  preset text -> settings; metadata + settings + devices -> placements in bytes
    config, gguf, devices, process, journal, store, simulate, demo_model
                       config.toml -> one tree; a GGUF header; free bytes; one child from birth to death; the
                       ring of decisions; sqlite; a trace replayed in virtual time; a small model to try
    core               the whole decision, pure: told (event, now), it answers with commands
    build_llama_server finds llama-server, or builds it; with the standard library only
    errors             each knows its HTTP status, its OpenAI type and its Retry-After
    descriptors        whether files have run out
    first_process      PID 1 of a container: the router is its child, which may be replaced
    installation       what to type for a command that the installation may not have
    log_record         what is logged of every request: put into words later
    tasks              the tasks of one owner: none can end another

One request: api reads the head of the body -> proxy takes a lease -> pool tells the scheduler Acquire and
awaits its Grant (behind it, maybe: Stop a victim, wait until the room is real, Start, Ready) -> bytes pass,
chunk by chunk -> the lease ends, whatever happened, with one Release. Where the model is ready nothing of
that waits, and most requests are answered so, without a task, before aiohttp's server sees them (app.front,
api.express, proxy.express); what is unusual in any way goes through aiohttp (api, proxy.forward).

To add: a backend = a file in backends; a kind of host = a file in hosts; a kind of device = a probe in
devices; an eviction policy = an entry in core.policy; an endpoint = a Route in its family's file in api; a
command = a file in cli; a metric = a row in metrics.state, or a counter where it happens; an
event = a reader of the journal.
"""

__version__ = "0.1.0"
