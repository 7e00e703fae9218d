"""Put a finished folder on the Hub, with its card.

python scripts/publish.py my-classifier --repo_id my-organisation/my-classifier --dry_run
"""

import sys

from retfound_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["publish", *sys.argv[1:]]))
