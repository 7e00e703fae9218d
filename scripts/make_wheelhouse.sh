#!/usr/bin/env bash
# Collect the wheels of the package and of all that it needs (about 4 GB), for a machine without a network:
#
#     bash scripts/make_wheelhouse.sh FOLDER [EXTRAS [OPTIONS_OF_PIP...]]
#     bash scripts/make_wheelhouse.sh wheelhouse app,dicom
#
# Run it on a machine with the same system, processor and Python version; PYTHON=python3.12 takes another than python3.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
house=$(realpath -m "$1") wanted="retfound-hf${2:+[$2]}"
# A copy, since setuptools leaves a build folder behind and would pack what an earlier one left there.
source_copy=$(mktemp -d)
trap 'rm -rf "$source_copy"' EXIT
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cp -R LICENSE MANIFEST.in README.md model_cards pyproject.toml retfound_hf setup.cfg "$source_copy"
"${PYTHON:-python3}" -m pip wheel --wheel-dir "$house" "$source_copy${2:+[$2]}" "${@:3}"
cat <<END

$(find "$house" -name '*.whl' | wc -l) wheels in $house. Copy the folder; on the other machine:
  python3 -m venv retfound && source retfound/bin/activate
  pip install --no-index --find-links $(basename "$house") '$wanted'
END
