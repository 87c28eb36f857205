"""What a sweep's fork server imports for all jobs: the code that trains, and how its files are at this moment."""

import vggexp.training.run  # noqa: F401
from vggexp.runs import code

code.own()
