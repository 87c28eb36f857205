"""`python -m vggexp` is `vggexp`."""

import sys

from vggexp.commands import main

if __name__ == "__main__":
    sys.exit(main())
