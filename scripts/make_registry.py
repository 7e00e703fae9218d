"""Make a synthetic registry: images with dates, events, and an effect planted between them.

python scripts/make_registry.py my-registry --modality oct --num_patients 200 --effect 1.5
"""

import sys

from retfound_hf.data.synthetic_sets import make_registry_command
from retfound_hf.options import run_command

if __name__ == "__main__":
    sys.exit(run_command(make_registry_command))
