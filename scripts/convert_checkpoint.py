"""Turn an official RETFound checkpoint into a model folder.

python scripts/convert_checkpoint.py YukunZhou/RETFound_mae_natureCFP retfound-cfp
python scripts/convert_checkpoint.py checkpoint-best.pth my-classifier --modality cfp --class_names none mild
"""

import sys

from retfound_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert_checkpoint", *sys.argv[1:]]))
