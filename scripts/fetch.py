"""The official weights from the Hub, as a model folder.

python scripts/fetch.py retfound-cfp
"""

import sys

from retfound_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["fetch", *sys.argv[1:]]))
