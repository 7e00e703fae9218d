"""A model folder in the format of timm or ONNX.

python scripts/export.py my-classifier --format onnx
"""

import sys

from retfound_hf.hub.export import main
from retfound_hf.options import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
