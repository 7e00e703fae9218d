"""Say what this machine has and lacks, and the command that mends it.

python scripts/doctor.py --online
"""

import sys

from retfound_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
