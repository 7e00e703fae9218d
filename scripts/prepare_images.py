"""Prepare images for pretraining: cropped, resized, in parquet shards.

python scripts/prepare_images.py my-photographs my-shards --modality cfp
"""

import sys

from retfound_hf.data.prepare_images import main
from retfound_hf.options import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
