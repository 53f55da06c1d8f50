#!/usr/bin/env -S python3 -S -E
"""A stand-in for llama-server that starts in milliseconds and misbehaves on request. Standard library only.

It listens on `--host PATH.sock`, takes (and ignores) llama-server's other flags, and speaks enough HTTP/1.1
to be proxied to. Its own flags may also come from the environment as FAKE_LLAMA_<NAME> (`--load-seconds` is
FAKE_LLAMA_LOAD_SECONDS; a switch is on unless it is "" or "0"), so that a real command line can be used; with
FAKE_LLAMA_FOR=ALIAS they hold only for the model with that --alias.

    --load-seconds S     /health says 503 that long, then 200
    --hang-load          never becomes ready, does nothing
    --busy-load          never becomes ready, but reads a file all the time
    --hang-health        accepts, and never answers /health
    --hang-bind          never listens at all
    --crash-during-load  segmentation fault half-way through the load
    --crash-after N      segmentation fault when N requests have been answered
    --crash-mid-stream N segmentation fault after N streamed chunks
    --exit-status N      end at once with that status, instead of serving
    --ignore-sigterm     as it says
    --slow-stop S        takes S seconds from SIGTERM to its end
    --silent             no log at all
    --lose-gpu           says that it cannot use its GPU, and goes on without it
    --spew-log MIB       writes that much log while it loads
    --fork-grandchild    leaves a child of its own, which holds the log and ignores SIGTERM
    --double-fork        the same, in a session of its own
    --hang-after N       the N-th POST is never answered, nor is anything after it but /health
    --hang-mid-stream N  the same after N streamed chunks
    --busy-seconds S     works (uses the processor) so long before it begins an answer, without a word
    --tokens N           tokens per answer (default 5); --token-seconds S between two of them (default 0)
    --alloc-mib N[,N..]  memory per device of CUDA_VISIBLE_DEVICES (device 0 without it), taken in steps while
                         it loads from the stub of NVML that LLAMA_ROUTER_STUB_NVML names, or of its own
                         without one; when it does not fit: llama.cpp's line and an abort
    --grow-mib N         takes that much more on each device at the first request
"""

# ruff: noqa: PTH100, PTH118, PTH120
# pathlib alone would double the time to start.

import json
import os
import signal
import socket
import sys
import threading
import time

SWITCHES = (
    "hang-load", "busy-load", "hang-health", "hang-bind", "crash-during-load", "ignore-sigterm", "silent",
    "lose-gpu",     "fork-grandchild", "double-fork",
)  # fmt: skip
VALUES = {
    "load-seconds": 0.0, "crash-after": 0, "crash-mid-stream": 0, "exit-status": -1, "slow-stop": 0.0,
    "spew-log": 0.0, "hang-after": 0, "hang-mid-stream": 0, "busy-seconds": 0.0, "tokens": 5,
    "token-seconds": 0.0, "alloc-mib": "", "grow-mib": 0,
}  # fmt: skip
#: llama-server's flags that this program reads.
KNOWN = {
    "--host": "host", "-a": "alias", "--alias": "alias", "-m": "model", "--model": "model",
    "-c": "ctx-size", "--ctx-size": "ctx-size", "-np": "parallel", "--parallel": "parallel",
}  # fmt: skip
KNOWN_DEFAULTS = {"host": "", "alias": "", "model": "", "ctx-size": "4096", "parallel": "1"}
STEPS = 10


def parse(argv, environ):
    options = {**dict.fromkeys(SWITCHES, False), **VALUES, **KNOWN_DEFAULTS}
    arguments = list(argv)
    given = {}
    while arguments:
        flag = arguments.pop(0)
        name = flag.removeprefix("--")
        if flag in KNOWN:
            options[KNOWN[flag]] = arguments.pop(0)
        elif name in SWITCHES:
            given[name] = True
        elif name in VALUES:
            given[name] = arguments.pop(0)
    if environ.get("FAKE_LLAMA_FOR", options["alias"]) == options["alias"]:
        for name in (*SWITCHES, *VALUES):
            text = environ.get("FAKE_LLAMA_" + name.upper().replace("-", "_"))
            if text is not None:
                given.setdefault(name, text not in ("", "0") if name in SWITCHES else text)
    for name, value in given.items():
        options[name] = value if name in SWITCHES else as_type_of(VALUES[name], value)
    return options


def as_type_of(default, text):
    return text if isinstance(default, str) else int(text) if isinstance(default, int) else float(text)


class OutOfMemory(Exception):
    pass


class Memory:
    """Bytes on the stub's devices; of the process itself where there is no stub."""

    def __init__(self, environ):
        self.folder = environ.get("LLAMA_ROUTER_STUB_NVML", "")
        visible = environ.get("CUDA_VISIBLE_DEVICES")
        self.devices = [0] if visible is None else [d for d in visible.split(",") if d]
        self.held = dict.fromkeys(self.devices, 0)
        self.allocation = None
        self.ballast = []
        if self.folder:
            sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "stub_nvml"))
            import state  # type: ignore[import-not-found]

            self.allocation = state.Allocation(self.folder)

    def take(self, sizes):
        """More bytes: one number per device, the last one for all further ones."""
        if self.allocation is None:
            self.ballast.append(bytearray(b"x") * sum(sizes))
            return
        wanted = {
            device: held + sizes[min(i, len(sizes) - 1)] for i, (device, held) in enumerate(self.held.items())
        }
        if not self.allocation.try_set(wanted):
            raise OutOfMemory(max(sizes))
        self.held = wanted


class Server:
    def __init__(self, options, memory):
        self.options = options
        self.memory = memory
        self.is_ready = False
        self.answered = 0
        self.begun = 0
        self.is_hung = False
        self.lock = threading.Lock()

    def log(self, text):
        if not self.options["silent"]:
            try:  # noqa: SIM105 - contextlib would slow the start down
                os.write(2, (text + "\n").encode())
            except OSError:
                pass  # the disk is full: llama-server goes on without a log

    def load(self):
        options = self.options
        sizes = [int(float(mib) * 2**20) // STEPS for mib in str(options["alloc-mib"]).split(",") if mib]
        for step in range(STEPS):
            if options["crash-during-load"] and step == STEPS // 2:
                crash()
            if sizes:
                self.take(sizes)
            if options["spew-log"]:
                self.spew(int(options["spew-log"] * 2**20) // STEPS)
            time.sleep(options["load-seconds"] / STEPS)
        while options["busy-load"]:
            with open(sys.executable, "rb") as file:
                file.read()
            time.sleep(0.02)
        if not options["hang-load"]:
            self.is_ready = True
            self.log("srv  llama_server: model loaded")

    def take(self, sizes):
        try:
            self.memory.take(sizes)
        except OutOfMemory:
            mib = sum(sizes) / 2**20
            self.log(
                f"ggml_backend_cuda_buffer_type_alloc_buffer: allocating {mib:.2f} MiB on device 0: "
                "cudaMalloc failed: out of memory"
            )
            self.log("llama_model_load: error loading model: unable to allocate CUDA0 buffer")
            os.abort()

    def spew(self, size):
        line = b"x" * 127 + b"\n"
        block = line * 512
        while size > 0:
            size -= os.write(2, block)

    def serve(self, listener):
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self.talk, args=(connection,), daemon=True).start()

    def talk(self, connection):
        try:
            with connection:
                data = b""
                while True:
                    while b"\r\n\r\n" not in data:
                        chunk = connection.recv(65536)
                        if not chunk:
                            return
                        data += chunk
                    head, _, data = data.partition(b"\r\n\r\n")
                    lines = head.decode("latin-1").split("\r\n")
                    method, target, _ = lines[0].split(" ", 2)
                    headers = {
                        k.strip().lower(): v.strip()
                        for k, _, v in (line.partition(":") for line in lines[1:])
                    }
                    body, data = self.read_body(connection, headers, data)
                    self.answer(connection, method, target, headers, body)
                    if headers.get("connection", "").lower() == "close":
                        return
        except (OSError, ValueError):
            pass  # the peer has gone

    def read_body(self, connection, headers, data):
        def more():
            chunk = connection.recv(65536)
            if not chunk:
                raise OSError("the request ended early")
            return chunk

        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = b""
            while True:
                while b"\r\n" not in data:
                    data += more()
                size, _, data = data.partition(b"\r\n")
                length = int(size.split(b";")[0], 16)
                while len(data) < length + 2:
                    data += more()
                body, data = body + data[:length], data[length + 2 :]
                if length == 0:
                    return body, data
        length = int(headers.get("content-length", 0))
        pieces, size = [data], len(data)
        while size < length:
            pieces.append(more())
            size += len(pieces[-1])
        data = b"".join(pieces)
        return data[:length], data[length:]

    def answer(self, connection, method, target, headers, body):
        path = target.partition("?")[0]
        if path in ("/health", "/v1/health"):
            if self.options["hang-health"]:
                time.sleep(1e6)
            if self.is_ready:
                send_json(connection, 200, {"status": "ok"})
            else:
                send_error(connection, 503, "Loading model", "unavailable_error")
            return
        if not self.is_ready:
            send_error(connection, 503, "Loading model", "unavailable_error")
            return
        if self.is_hung:
            self.hang()
        if path == "/echo":
            send_json(connection, 200, {"method": method, "target": target, "headers": headers,
                                        "body": body.decode("latin-1")})  # fmt: skip
            return
        if path in ("/props", "/slots", "/metrics", "/models", "/v1/models"):
            self.answer_about(connection, path)
            return
        if method != "POST":
            send_error(connection, 404, "File Not Found", "not_found_error")
            return
        with self.lock:
            self.begun += 1
            if 0 < self.options["hang-after"] <= self.begun:
                self.is_hung = True
        if self.is_hung:
            self.hang()
        self.before_work()
        request = json.loads(body or b"{}")
        if path.endswith("/completions") or path == "/completion":
            self.complete(connection, path, request)
        elif path.endswith(("/embeddings", "/embedding")):
            send_json(connection, 200, {"object": "list", "model": self.options["alias"],
                "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}],
                "usage": {"prompt_tokens": 1, "total_tokens": 1}})  # fmt: skip
        else:
            send_json(connection, 200, {"path": path, "model": self.options["alias"], "request": request})
        with self.lock:
            self.answered += 1
            if 0 < self.options["crash-after"] <= self.answered:
                crash()

    def hang(self):
        self.is_hung = True
        time.sleep(1e6)

    def before_work(self):
        until = time.monotonic() + self.options["busy-seconds"]
        while time.monotonic() < until:
            pass
        with self.lock:
            grow, self.options["grow-mib"] = self.options["grow-mib"], 0
            if grow:
                self.take([grow * 2**20])

    def answer_about(self, connection, path):
        if path == "/metrics":
            rows = {"tokens_predicted_total counter": self.answered, "requests_processing gauge": 0}
            lines = [
                f"# HELP llamacpp:{name} of a fake\n# TYPE llamacpp:{name} {kind}\nllamacpp:{name} {value}\n"
                for (name, kind), value in ((row.split(), value) for row, value in rows.items())
            ]
            send(connection, 200, "".join(lines).encode(), "text/plain; version=0.0.4")
        elif path == "/props":
            n_ctx, total_slots = int(self.options["ctx-size"]), int(self.options["parallel"])
            props = {"total_slots": total_slots, "default_generation_settings": {"n_ctx": n_ctx}}
            send_json(connection, 200, {"model_alias": self.options["alias"], **props})
        elif path == "/slots":
            slots = [{"id": i, "is_processing": False} for i in range(int(self.options["parallel"]))]
            send_json(connection, 200, slots)
        else:
            models = [{"id": self.options["alias"], "object": "model"}]
            send_json(connection, 200, {"object": "list", "data": models})

    def complete(self, connection, path, request):
        words = [f"token{i} " for i in range(int(request.get("max_tokens") or self.options["tokens"]))]
        is_chat = "chat" in path
        usage = {"prompt_tokens": 1, "completion_tokens": len(words), "total_tokens": 1 + len(words)}
        base = {"id": f"fake-{os.getpid()}", "created": 0, "model": self.options["alias"]}
        if not request.get("stream"):
            for _ in words:
                time.sleep(self.options["token-seconds"])
            text = "".join(words)
            choice = {"index": 0, "finish_reason": "stop"}
            choice.update({"message": {"role": "assistant", "content": text}} if is_chat else {"text": text})
            kind = "chat.completion" if is_chat else "text_completion"
            send_json(connection, 200, {**base, "object": kind, "choices": [choice], "usage": usage})
            return
        connection.sendall(b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nContent-Type: text/event-stream\r\n"
                           b"Transfer-Encoding: chunked\r\n\r\n")  # fmt: skip
        kind = "chat.completion.chunk" if is_chat else "text_completion"
        for i, word in enumerate([*words, None]):
            choice = {"index": 0, "finish_reason": "stop" if word is None else None}
            if is_chat:
                choice["delta"] = {} if word is None else {"content": word}
            else:
                choice["text"] = word or ""
            event = {**base, "object": kind, "choices": [choice]}
            if word is None:
                event["usage"] = usage
            send_chunk(connection, b"data: " + json.dumps(event).encode() + b"\n\n")
            if i + 1 == self.options["crash-mid-stream"]:
                crash()
            if i + 1 == self.options["hang-mid-stream"]:
                self.hang()
            if word is not None:
                time.sleep(self.options["token-seconds"])
        send_chunk(connection, b"data: [DONE]\n\n")
        connection.sendall(b"0\r\n\r\n")


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(10)


def send_chunk(connection, data):
    connection.sendall(b"%x\r\n%s\r\n" % (len(data), data))


def send(connection, status, body, content_type):
    reason = {200: "OK", 404: "Not Found", 503: "Service Unavailable"}.get(status, "Error")
    head = f"HTTP/1.1 {status} {reason}\r\nServer: llama.cpp\r\nContent-Type: {content_type}\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode("latin-1") + body)


def send_json(connection, status, value):
    send(connection, status, json.dumps(value).encode(), "application/json; charset=utf-8")


def send_error(connection, status, message, kind):
    send_json(connection, status, {"error": {"code": status, "message": message, "type": kind}})


def fork_grandchild(own_session):
    if os.fork():
        return
    if own_session:
        os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(3600)


def main():
    if "--help" in sys.argv:
        with open(__file__.replace("fake_llama_server.py", "llama_server_help.txt")) as file:
            print(file.read())
        return
    if "--version" in sys.argv:
        print("version: fake (build 0, commit fake)")
        return
    if "--list-devices" in sys.argv:
        print("Available devices:\n  (none)")
        return
    options = parse(sys.argv[1:], os.environ)
    server = Server(options, Memory(os.environ))
    if options["lose-gpu"]:
        why = "system has unsupported display driver / cuda driver combination"
        server.log(f"ggml_cuda_init: failed to initialize CUDA: {why}")
    server.log(f"srv  llama_server: initializing, pid {os.getpid()}")
    if options["exit-status"] >= 0:
        server.log("srv  llama_server: exiting due to a wish")
        sys.exit(options["exit-status"])
    for own_session, wanted in ((False, options["fork-grandchild"]), (True, options["double-fork"])):
        if wanted:
            fork_grandchild(own_session)
    if options["ignore-sigterm"]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:

        def on_term(_number, _frame):
            time.sleep(options["slow-stop"])
            server.log("srv    operator(): cleaning up before exit...")
            os._exit(0)

        signal.signal(signal.SIGTERM, on_term)
    if not options["hang-bind"]:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(options["host"])
        except OSError:
            server.log(f"srv  couldn't bind HTTP server socket, hostname: {options['host']}")
            sys.exit(1)
        listener.listen(512)
        threading.Thread(target=server.serve, args=(listener,), daemon=True).start()
    server.load()
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
