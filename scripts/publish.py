"""Put a finished folder on the Hub, with its card.

python scripts/publish.py my-classifier --repo_id my-organisation/my-classifier --dry_run
"""

import sys

from retfound_hf.hub.publish import main
from retfound_hf.options import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
