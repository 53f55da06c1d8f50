"""llama-router: a connection pool whose connections are processes and whose limit is memory.

A client asks for a model by name. The router makes sure that a `llama-server` with that model runs somewhere
it fits, holds a lease on it for as long as the request lives, and passes the bytes through.

The packages, top to bottom. A package imports only from those below it; packages of one line do not import
each other.

    __main__ > cli     the command line; each command is a file, imported when it is run
    app                Config -> a running server: the Router, whose fields are the parts, opened in order
    http               the client side: one connection, its limits, dispatch by path
    admin              aiohttp handlers, a file per family of endpoints; keys, CORS, errors in OpenAI's shape
    metrics            Prometheus: counters, and gauges read from a snapshot
    proxy              requests to instances: acquire a lease, pass bytes both ways, heartbeats, failures
    supervisor         the async shell around the scheduler: pool, stall watch, calibration, planning
    downloads          models from a Hugging Face hub into its cache, and their removal
    models             catalog (folders, hub cache, presets) and definitions (how each model is run)
    hosts              where child processes run; the one seam between the scheduler and a machine
    engines            what an inference server is: argv, environment, socket, health path
    presets, memory    preset text -> settings; devices and their free bytes, the estimate of a model's bytes
    config, gguf, process, db, observability, simulate
                       config.toml -> one tree; a GGUF header; one child process; sqlite; the journal of
                       decisions and its readers; a trace replayed in virtual time
    scheduler          the whole decision, pure: (event, now) -> commands
    build_llama_server finds llama-server, or builds it; with the standard library only
    errors             each has its HTTP status, its OpenAI type and its Retry-After
    ids                identifiers as values: the definition of a model
    descriptors, first_process, installation, tasks, text_file
                       whether file descriptors have run out; PID 1 of a container; which commands there are;
                       tasks whose failure cancels no other; a text file that a person wrote

One request: http finds its head and dispatches by path. Inference: its route (admin.openai) reads a few
fields of the body -> proxy.request acquires a lease: supervisor.pool passes Acquire to the scheduler, which
grants at once where the model is ready, and else after Stop (a victim), its memory measured free, Start,
Ready -> bytes pass, chunk by chunk -> the lease ends, however the request ended, with one Release. Everything
else goes to the aiohttp application (admin).

To add: an engine = a file in engines; a kind of host = a file in hosts; a kind of device = a probe in
memory.devices; an eviction policy = an entry in scheduler.policy; an endpoint = a Route in its family's file
in admin; a command = a file in cli; a metric = a row in metrics.state, or a counter where it happens; an
event = a reader of the journal.
"""

__version__ = "0.2.0"
