"""Make a synthetic labelled set.

python scripts/make_synthetic.py synthetic-cfp --modality cfp --num_patients 120
"""

import sys

from retfound_hf.data.synthetic_sets import main
from retfound_hf.options import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
