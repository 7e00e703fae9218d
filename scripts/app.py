"""A fine-tuned folder in a browser, on this machine alone.

python scripts/app.py --model my-classifier
"""

import sys

from retfound_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
