import json
import runpy
from pathlib import Path

BENCHMARKS = Path(__file__).parents[3] / "scripts" / "benchmarks"


def test_the_chart_of_the_readme_is_that_of_its_commands():
    recorded = json.loads((BENCHMARKS / "results" / "cohort_flow.json").read_text())
    assert runpy.run_path(str(BENCHMARKS / "cohort_flow.py"))["cohort"]().flow.as_dict() == recorded
