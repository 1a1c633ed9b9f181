"""Write the fitted pilot that the package ships: the predictor as it is configured, on all published rows.

python ship.py        # a quarter of a minute; writes llmpilot/predict/pilot/fitted/published.zip
"""

from setting import shipped_pilot

from llmpilot.config import parse_seed
from llmpilot.dataset import published
from llmpilot.predict.pilot.shipped import FITTED, made_of, ship

SEED = 42  # of conf/config.yaml


def main() -> None:
    pilot, data, seed = shipped_pilot(), published(), parse_seed(SEED)
    ship(pilot.fit(data, seed), made_of(pilot.model_dump(mode="json"), data, seed))
    print(f"{FITTED}: {FITTED.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
