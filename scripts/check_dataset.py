"""Check a downloaded copy of a public data set of RETFound's benchmark.

python scripts/check_dataset.py IDRiD data/IDRiD
"""

import sys

from retfound_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["check_dataset", *sys.argv[1:]]))
