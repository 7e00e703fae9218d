"""Prepare images for pretraining: cropped, resized, in parquet shards.

python scripts/prepare_images.py my-photographs my-shards --modality cfp
"""

import sys

from retfound_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare_images", *sys.argv[1:]]))
