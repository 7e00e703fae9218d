# Sourced by the other shell scripts: go to the checkout, make .venv there or take the one that is there, and install
# the package into it with the extras that $1 names. A second run with the same setup.cfg installs nothing.
# SKIP_SETUP=1 takes the environment that is active instead.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -z "${SKIP_SETUP:-}" ] || return 0
[ -d .venv ] || "${PYTHON:-python3}" -m venv .venv
wanted="extras $1, $(cat setup.cfg pyproject.toml | cksum)"
if ! grep -qxF "$wanted" .venv/installed 2>/dev/null; then
    echo "Installing into .venv (about 6 GB, a few minutes the first time)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$1"
    echo "$wanted" >> .venv/installed
fi
source .venv/bin/activate
