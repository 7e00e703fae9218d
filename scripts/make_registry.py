"""Make a synthetic registry: images with dates, events, and an effect planted between them.

python scripts/make_registry.py my-registry --modality oct --num_patients 200 --effect 1.5
"""

import sys

from retfound_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["make_registry", *sys.argv[1:]]))
