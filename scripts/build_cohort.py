"""Label images with what befell their patients within a horizon.

python scripts/build_cohort.py images.csv events.csv cohort --event stroke --horizon 3y
"""

import sys

from retfound_hf.data.build_cohort import main
from retfound_hf.options import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
