"""The max batch weight of a service, found in few deployments. Knows not how one is started."""

from llmpilot.tune.identity import Identity
from llmpilot.tune.live import Services
from llmpilot.tune.plan import Bounds
from llmpilot.tune.settings import Tuner
from llmpilot.tune.study import TuningStudy, storage_url
from llmpilot.tune.trial import Outcome, measure

__all__ = ["Bounds", "Identity", "Outcome", "Services", "Tuner", "TuningStudy", "measure", "storage_url"]
