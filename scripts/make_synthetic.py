"""Make a synthetic labelled set.

python scripts/make_synthetic.py synthetic-cfp --modality cfp --num_patients 120
"""

import sys

from retfound_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["make_synthetic", *sys.argv[1:]]))
