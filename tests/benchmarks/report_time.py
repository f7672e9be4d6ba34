"""How long a report takes after import, by stage: python tests/benchmarks/report_time.py [--patients 5000]

Studies, scores and networks are made up; calibrate, evaluate and report are the stages themselves. Half of the
patients are test patients, half calibration patients. Prints one JSON object: seconds by the clock and of processor
time, and the load of the machine, since a busy machine stretches the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import example_run

from pipeline.settings.decision import ReportSettings
from pipeline.stages.report import report
from pipeline.store.runlog import RunLog

SHARES = {"train": 0.02, "tune": 0.02, "calibration": 0.48, "test": 0.48}
TARGET_SECONDS = 20


def timed(work: Callable[[], object]) -> tuple[object, dict[str, float]]:
    """Return the result, and seconds by the clock and of this process's processors."""
    clock, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, {
        "clock_s": round(time.perf_counter() - clock, 1),
        "processor_s": round(time.process_time() - processor, 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=5000)
    patients = parser.parse_args().patients
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        inputs, earlier = timed(lambda: example_run.make_run(root / "store", patients=patients, shares=SHARES))
        (root / "report").mkdir()
        log = RunLog("report", quiet=True)
        _, last = timed(lambda: report(ReportSettings(title="Benchmark"), inputs, root / "report", log))
        measured = {
            "patients": patients,
            "calibrate_and_evaluate": earlier,
            "report": last,
            "report_target_s": TARGET_SECONDS,
            "cores": os.cpu_count(),
            "load_1_min": round(os.getloadavg()[0], 1),
            "pdf_kb": (root / "report" / "report.pdf").stat().st_size // 1000,
        }
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
