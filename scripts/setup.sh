#!/usr/bin/env bash
# Makes .venv with all that the suite needs, or completes it: 2 to 10 minutes and 2.4 GB of downloads the
# first time, under a second afterwards. Looks for a Python 3.9 or 3.10 that works ($PYTHON is tried first)
# and gets 3.10 with uv where there is none.
#   scripts/setup.sh           what the four stages need
#   scripts/setup.sh --test    what the tests need as well
#   scripts/setup.sh --which   prints the Python that would be used; installs nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

GIGABYTES=8  # free disk at first: 4.9 for .venv, 2.4 for the downloads while they are unpacked
LOG=setup.log
RIGHT_VERSION="import sys; sys.version_info[:2] in ((3, 9), (3, 10)) or sys.exit(3)"
NO_PYTHON="found no Python 3.9 or 3.10 that can make a virtual environment"

fail() {
    echo "error: $*" >&2
    exit 2
}

# Prints the path of the Python behind command $1 if it really runs, is a 3.9 or 3.10, and can make a virtual
# environment. (A pyenv shim of a version that is not selected only prints an error; Debian's python3 may come
# without ensurepip.)
usable() {
    timeout 20 "$1" -c "$RIGHT_VERSION; import ensurepip, venv; print(sys.executable)" 2>/dev/null
}

find_python() {
    local candidate pyenv=${PYENV_ROOT:-${HOME:-}/.pyenv}
    for candidate in ${PYTHON:+"$PYTHON"} python3.10 python3.9 python3 python \
        "$pyenv"/versions/3.{10,9}*/bin/python; do
        usable "$candidate" && return
    done
    return 1
}

# Sets `uv` to one that runs: the user's, or one that pip puts into folder $1.
find_uv() {
    local python
    for uv in uv "${HOME:-}/.local/bin/uv"; do
        "$uv" --version && return
    done
    for python in python3 python; do
        "$python" -m venv "$1/venv" && "$1/venv/bin/python" -m pip install uv && uv=$1/venv/bin/uv && return
        "$python" -m pip install --target "$1/target" uv && uv=$1/target/bin/uv && return
    done
    return 1
}

# Makes an empty .venv with the Python found, or with one that uv brings.
make_venv() {
    local python scratch
    if ! python=$(find_python); then
        scratch=$(mktemp -d)
        trap 'rm -rf "'"$scratch"'"' EXIT
        echo "$NO_PYTHON: getting one with uv"
        find_uv "$scratch" >>"$LOG" 2>&1 ||
            fail "$NO_PYTHON, nor uv to get one ($LOG says why):" \
                "install python3.10 and python3.10-venv, or uv."
        # uv's own Python, and no link to it in ~/.local/bin
        export UV_PYTHON_PREFERENCE=only-managed UV_PYTHON_INSTALL_BIN=0
        "$uv" python install 3.10 >>"$LOG" 2>&1 ||
            fail "$NO_PYTHON, and uv could not fetch one ($LOG says why): is there a network?"
        python=$("$uv" python find --system 3.10 2>>"$LOG") ||
            fail "uv does not find the Python that it fetched ($LOG says why)."
    fi
    echo "making .venv with $python"
    "$python" -m venv --clear .venv >>"$LOG" 2>&1 || fail "$python could not make .venv ($LOG says why)."
}

# Says in one sentence why pip failed, by its log.
explain() {
    grep -qi "no space left" "$LOG" && fail "the disk is full: free $GIGABYTES GB here and run this again."
    local network="connection broken|connection error|ConnectTimeout|name resolution|not known|Max retries"
    grep -Eqi "$network" "$LOG" &&
        fail "pip cannot reach its package index ($LOG):" \
            "check the network and pip's settings, and run this again."
    local last
    last=$(grep -o "ERROR: .*" "$LOG" | tail -n 1)
    fail "pip could not install the requirements: $last ($LOG has the rest)."
}

# ------------------------------------------------------------------ what is there, what is missing
files=(requirements.txt)
case "${1:-}" in
    "") ;;
    --test) files+=(requirements-test.txt) ;;
    --which)
        find_python || fail "$NO_PYTHON: without --which, uv would get one."
        exit
        ;;
    *) fail "found option '$1', expected --test, --which or none." ;;
esac
[ "$(uname -sm)" = "Linux x86_64" ] ||
    fail "this is $(uname -sm), and OneFlow 0.9.0 was built for Linux x86_64 alone."

state=0  # of .venv: 0 works, 3 runs another version, else missing or broken
.venv/bin/python -c "$RIGHT_VERSION; import pip" 2>/dev/null || state=$?
[ $state -ne 3 ] ||
    fail ".venv holds $(.venv/bin/python --version), expected 3.9 or 3.10:" \
        "remove that folder and run this again."
stamps=()
for file in "${files[@]}"; do stamps+=(".venv/$file.sha256"); done
if [ $state -eq 0 ] && cat "${stamps[@]}" 2>/dev/null | sha256sum --check --status 2>/dev/null; then
    echo "ready: .venv, $(.venv/bin/python --version)"
    exit
fi

# ------------------------------------------------------------------ installing
free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1000000)}')
[ ! -e .venv/requirements.txt.sha256 ] || GIGABYTES=1
[ "$free" -ge $GIGABYTES ] ||
    fail "$PWD has $free GB of free disk, expected $GIGABYTES: make room and run this again."
: >"$LOG"
[ $state -eq 0 ] || make_venv

echo "installing ${files[*]} into .venv (the first time 2.4 GB of downloads; log: $LOG)"
quiet=()
[ -t 1 ] || quiet=(--quiet --progress-bar=off)
rm -rf .venv/tmp
mkdir .venv/tmp
TMPDIR=$PWD/.venv/tmp .venv/bin/python -m pip install "${quiet[@]}" --require-virtualenv --no-user \
    --log "$LOG" "${files[@]/#/--requirement=}" 2>/dev/null || explain
rm -rf .venv/tmp
.venv/bin/python -c "from data.engine import load_oneflow; load_oneflow()" || exit 2
for file in "${files[@]}"; do sha256sum "$file" >".venv/$file.sha256"; done
echo "ready: .venv, $(.venv/bin/python --version)"
