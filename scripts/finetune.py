"""Fine-tune a model folder on a labelled set.

python scripts/finetune.py --model_name_or_path retfound-cfp --data my-images --output_dir my-classifier
"""

import sys

from retfound_hf.hub.publish import finetune
from retfound_hf.options import run_command

if __name__ == "__main__":
    sys.exit(run_command(finetune))
