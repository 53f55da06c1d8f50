# Sourced by run, test and check: the virtual environment in .venv, made once and renewed when its requirements change.
# When nothing changed it starts no process at all, so that bin/run listens at once.

root=$(cd -P "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
python=$venv/bin/python

# Make sure that .venv holds what requirements.txt (or the file given) pins, and llama-router itself.
ensure_environment() {
    local requirements=${1:-requirements.txt} want
    want=$(environment_stamp "$requirements")
    is_current "$requirements" "$want" && return
    if command -v flock >/dev/null; then
        ( flock 9; is_current "$requirements" "$want" || build_environment "$requirements" "$want" ) 9>"$root/.venv.lock"
    else
        ( build_environment "$requirements" "$want" )
    fi || exit
}

# Print the path of llama-server, building it first where there is none. $1: the config.toml that may name one, or "".
# What was found last time is taken again while nothing has changed that decides it: a start must not wait for a search.
find_llama_server() {
    local memo=$venv/llama-server.found config=$1 circumstances="" name known path=""
    for name in llama-server nvcc hipcc glslc; do circumstances+="$(type -P "$name" || :):"; done
    for name in /dev/nvidiactl /dev/kfd /dev/dri /dev/dxg; do [[ ! -e $name ]] || circumstances+="$name:"; done
    circumstances+="${LLAMA_SERVER:-}:${LLAMA_CMAKE_ARGS:-}:${XDG_CACHE_HOME:-~}:$config"
    [[ ! -r $memo ]] || { IFS= read -r known && IFS= read -r path; } <"$memo" || known=""
    if [[ ${known:-} == "$circumstances" && -x $path && ! $root/router/build_llama_server.py -nt $memo ]] &&
        [[ -z $config || ! $config -nt $memo ]]; then
        printf '%s\n' "$path"
        return
    fi
    path=$("$python" -IS "$root/bin/build-llama-server" ${config:+--config "$config"}) || exit
    printf '%s\n' "$circumstances" "$path" >"$memo"
    printf '%s\n' "$path"
}

fail() {
    printf 'llama-router: %s\n' "$@" >&2
    exit 1
}

# Everything that decides what is in .venv. The folder is part of it: a virtual environment cannot be moved.
environment_stamp() {
    printf '%s\n' "$root"
    printf '%s\n' "$(<"$root/requirements.txt")"
    [[ $1 == requirements.txt ]] || printf '%s\n' "$(<"$root/$1")"
}

is_current() {
    local stamp=$venv/$1.installed
    [[ -x $python && -r $stamp ]] && [[ $(<"$stamp") == "$2" ]]
}

build_environment() {
    local requirements=$1 want=$2
    # A user-wide `user = true` in pip's configuration would refuse to install into a virtual environment.
    export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        local base
        base=$(find_python) || exit
        echo "llama-router: creating .venv with $("$base" --version)" >&2
        "$base" -m venv --clear "$venv" || fail "could not create $venv"
    fi
    echo "llama-router: installing $requirements into .venv" >&2
    "$python" -m pip install -qq --requirement "$root/$requirements" ||
        fail "could not install $requirements; is a package index reachable? (pip's own message stands above)"
    install_command
    # Last, and in one step each: a set-up that was interrupted is done again.
    environment_stamp requirements.txt >"$venv/requirements.txt.installed"
    printf '%s\n' "$want" >"$venv/$requirements.installed"
}

# Link the checkout into .venv: `import router` and the command llama-router. No build step that could need a network.
install_command() {
    local packages
    packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    printf '%s\n' "$root" >"$packages/llama-router.pth"
    printf '%s\n' '#!/bin/sh' 'exec "$(dirname "$(readlink -f "$0")")/python" -P -m router "$@"' >"$venv/bin/llama-router"
    chmod +x "$venv/bin/llama-router"
}

# Print the first Python that is new enough, can make virtual environments, and really starts:
# a version manager may have put a python3.12 on PATH with no 3.12 behind it.
find_python() {
    local candidate old="" bare="" status
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11 python; do
        command -v "$candidate" >/dev/null || continue
        status=0
        "$candidate" -c '
import sys
if sys.version_info < (3, 11): sys.exit(3)
try: import ensurepip, venv
except ImportError: sys.exit(4)' >/dev/null 2>&1 || status=$?
        case $status in
            0) command -v "$candidate"; return ;;
            3) old=$candidate ;;
            4) bare=$candidate ;;
        esac
    done
    if [[ $bare ]]; then
        fail "$bare cannot create virtual environments." \
            "  Debian, Ubuntu:  sudo apt install python3-venv"
    fi
    fail "Python 3.11 or newer is needed${old:+ ($old is older)}." \
        "  Debian, Ubuntu:  sudo apt install python3 python3-venv" \
        "  Fedora:          sudo dnf install python3" \
        "  Arch:            sudo pacman -S python" \
        "  macOS:           brew install python" \
        "Or name one: PYTHON=/path/to/python3 bin/run"
}
