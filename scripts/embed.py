"""Write the feature vectors of images.

python scripts/embed.py --model_name_or_path retfound-cfp --data my-images --output_dir my-features
"""

import sys

from retfound_hf.inference.embed import main
from retfound_hf.options import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
