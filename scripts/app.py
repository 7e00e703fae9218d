"""A fine-tuned folder in a browser, on this machine alone.

python scripts/app.py --model my-classifier
"""

import sys

from retfound_hf.app.server import main
from retfound_hf.options import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
