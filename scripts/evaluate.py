"""Evaluate a fine-tuned folder on any labelled set.

python scripts/evaluate.py --model_name_or_path my-classifier --data other-images --output_dir my-evaluation
"""

import sys

from retfound_hf.inference.evaluate import main
from retfound_hf.options import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
