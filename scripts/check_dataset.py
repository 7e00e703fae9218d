"""Check a downloaded copy of a public data set of RETFound's benchmark.

python scripts/check_dataset.py IDRiD data/IDRiD
"""

import sys

from retfound_hf.data.public_sets import main
from retfound_hf.options import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
