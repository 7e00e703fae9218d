"""Pretrain on image shards; under `accelerate launch`, on all its processes.

accelerate launch scripts/pretrain.py --config_name retfound-cfp --train_data my-shards --output_dir my-retfound
accelerate launch --config_file scripts/accelerate/8_gpus.yaml scripts/pretrain.py --config_name retfound-oct \
    --model_name_or_path facebook/vit-mae-large --train_data my-shards --output_dir my-retfound --bf16
"""

import sys

from retfound_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
