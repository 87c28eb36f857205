"""An inspection from outside the package, as a user would write it."""

from vggexp.inspection.base import Inspection


class Mine(Inspection):
    """An inspection that shows nothing."""
