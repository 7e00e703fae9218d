"""A model folder in the format of timm or ONNX.

python scripts/export.py my-classifier --format onnx
"""

import sys

from retfound_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
