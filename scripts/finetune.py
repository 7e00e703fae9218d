"""Fine-tune a model folder on a labelled set.

python scripts/finetune.py --model_name_or_path retfound-cfp --data my-images --output_dir my-classifier
"""

import sys

from retfound_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
