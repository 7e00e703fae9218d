"""Show what a classifier looks at, or what an autoencoder paints.

python scripts/explain.py --model_name_or_path my-classifier --data my-images/test --output_dir my-maps
"""

import sys

from retfound_hf.explanation.explain import main
from retfound_hf.options import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
