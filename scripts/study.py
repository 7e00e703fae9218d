"""Compare models over data sets, label fractions and seeds, as one file says.

python scripts/study.py scripts/studies/synthetic.yaml --output_dir my-study --jobs 2
"""

import sys

from retfound_hf.options import run_command
from retfound_hf.study.runner import main

if __name__ == "__main__":
    sys.exit(run_command(main))
