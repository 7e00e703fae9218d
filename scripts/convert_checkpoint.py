"""Turn an official RETFound checkpoint into a model folder.

python scripts/convert_checkpoint.py YukunZhou/RETFound_mae_natureCFP retfound-cfp
python scripts/convert_checkpoint.py checkpoint-best.pth my-classifier --modality cfp --class_names none mild
"""

import sys

from retfound_hf.models.conversion import main
from retfound_hf.options import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
