"""An inspection from outside of the package, as a user would write it."""

from vggexp.inspection.base import Inspection


class Mine(Inspection):
    """Shows nothing."""
