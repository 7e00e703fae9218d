"""Show what a classifier looks at, or what an autoencoder paints.

python scripts/explain.py --model_name_or_path my-classifier --data my-images/test --output_dir my-maps
"""

import sys

from retfound_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["explain", *sys.argv[1:]]))
