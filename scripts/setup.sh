#!/bin/sh
# Find a Python that can make the environment, and let setup.py make it.
#   scripts/setup.sh                     any suitable Python; an environment that is ready stays as it is
#   PYTHON=python3.12 scripts/setup.sh   this Python and no other
set -eu
here=$(dirname "$0")

suits() {  # It has to run: a pyenv shim is on the path without working, and Debian splits venv off.
    "$1" -c 'import sys, venv, ensurepip, fcntl; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    if suits "$PYTHON"; then exec "$PYTHON" "$here/setup.py" --this-python; fi
    echo "setup: PYTHON=$PYTHON is not a working Python >= 3.11 with the venv module." >&2
    exit 1
fi
for candidate in python3 python3.13 python3.12 python3.11 python3.14; do
    if suits "$candidate"; then exec "$candidate" "$here/setup.py"; fi
done
echo "setup: no Python >= 3.11 with the venv module was found. Install one (Debian, Ubuntu: apt install" >&2
echo "python3 python3-venv), or name it: make PYTHON=/path/to/python3.12" >&2
exit 1
