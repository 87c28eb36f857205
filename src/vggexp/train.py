"""`python -m vggexp.train`."""

import sys

from vggexp.commands import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
