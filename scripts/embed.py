"""Write the feature vectors of images.

python scripts/embed.py --model_name_or_path retfound-cfp --data my-images --output_dir my-features
"""

import sys

from retfound_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
