"""Prepare images for pretraining: cropped, resized, in parquet shards.

python scripts/prepare_images.py my-photographs my-shards --modality cfp
"""

import sys

from retfound_hf.data.shards.command import main
from retfound_hf.runs.arguments import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
