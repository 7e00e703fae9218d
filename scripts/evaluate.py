"""Evaluate a fine-tuned folder on any labelled set.

python scripts/evaluate.py --model_name_or_path my-classifier --data other-images --output_dir my-evaluation
"""

import sys

from retfound_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
