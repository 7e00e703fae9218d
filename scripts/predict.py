"""Predict images without labels.

python scripts/predict.py --model_name_or_path my-classifier --data new-images --output_dir my-predictions
"""

import sys

from retfound_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
