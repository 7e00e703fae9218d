"""The official weights from the Hub, as a model folder.

python scripts/fetch.py retfound-cfp
"""

import sys

from retfound_hf.hub.fetch import main
from retfound_hf.options import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
