"""Compare models over data sets, label fractions and seeds, as one file says.

python scripts/study.py scripts/studies/synthetic.yaml --output_dir my-study --jobs 2
"""

import sys

from retfound_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["study", *sys.argv[1:]]))
