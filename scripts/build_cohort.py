"""Label images with what befell their patients within a horizon.

python scripts/build_cohort.py images.csv events.csv cohort --event stroke --horizon 3y
"""

import sys

from retfound_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["build_cohort", *sys.argv[1:]]))
