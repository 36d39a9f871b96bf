"""The configuration of `specpipe tune`."""

from pydantic import Field

from specpipe.schemas.settings.budget import Budgeted


class TuneConfig(Budgeted):
    """`specpipe tune`: search the settings of a training run that depend on its data.

    Every setting of `specpipe train` that is given is kept; those of the search that are not given
    are searched.
    """

    max_trials: int = Field(32, ge=2, le=1000)
    """Most settings that are tried, the recipe's among them."""
