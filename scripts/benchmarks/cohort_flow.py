"""The flow chart of the README: the synthetic registry of its commands, without its images.

python scripts/benchmarks/cohort_flow.py --out scripts/benchmarks/results/cohort_flow
"""

import argparse
import tempfile
from pathlib import Path

from retfound_hf.data.build_cohort import plot_flow
from retfound_hf.data.cohort import Cohort, Horizon, Matching, Question, build_cohort
from retfound_hf.data.registry import read_registry
from retfound_hf.data.synthetic_sets import Plan, draw_registry
from retfound_hf.files import write_json


def cohort() -> Cohort:
    """Stroke within three years, each case with two controls alike, among 200 synthetic patients."""
    registry = draw_registry(200, Plan())
    with tempfile.TemporaryDirectory() as folder:
        for name in ("images", "events"):
            getattr(registry, name).to_csv(Path(folder, f"{name}.csv"), index=False)
        found = read_registry(Path(folder, "images.csv"), Path(folder, "events.csv"))
    return build_cohort(found, Question(("stroke",), Horizon.parse("3y"), "patient"), matching=Matching(2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="of the files, without .json and .png")
    out = parser.parse_args().out
    built = cohort()
    write_json(f"{out}.json", built.flow.as_dict())
    plot_flow(built.flow, Path(f"{out}.png"))
