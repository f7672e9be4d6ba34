"""Whether ingest's memory and time per file stay the same as an archive grows. By hand:

    .venv/bin/python tests/benchmarks/ingest_scale.py [--sizes 1000 20000] [--workers 2]

Writes archives of different DICOM radiographs (224 x 224, JPEG), runs `maescreen run CONFIG --until ingest` on each in
a process of its own, and prints JSON: peak memory of the process that leads and of its largest worker (VmHWM), wall
and CPU seconds per file of the stage.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import yaml
from PIL import Image as pillow

sys.path.insert(0, str(Path(__file__).parents[1]))

from imaging.files import make_jpeg_dicom
from stages.sources_run import make_card

SIDE = 224
SAMPLED_EVERY_S = 0.05


def write_archive(folder: Path, count: int) -> Path:
    """Write `count` radiographs of half as many patients, their labels, card and config; return the config."""
    rows = ["path,label"]
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (12, 12)).astype(np.uint8)
        stream = io.BytesIO()
        pillow.fromarray(coarse).resize((SIDE, SIDE), pillow.Resampling.BICUBIC).save(stream, "JPEG", quality=80)
        path = folder / "studies" / f"{number % 97:02d}" / f"{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        uids = {"SOPInstanceUID": f"2.25.{number + 1}", "PatientID": f"P{number // 2}", "StudyDate": "20150101"}
        path.write_bytes(make_jpeg_dicom(stream.getvalue(), SIDE, SIDE, **uids))
        rows.append(f"{path.relative_to(folder / 'studies')},{'ill' if number % 3 else 'well'}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    (folder / "card.yaml").write_text(yaml.safe_dump(make_card(path="path").model_dump()))
    data = {"studies": ["studies"], "labels": "labels.csv", "card": "card.yaml", "key_file": "archive.key"}
    config = folder / "scale.yaml"
    config.write_text(
        yaml.safe_dump({"project": "scale", "store": "store", "data": data, "report": {"title": "scale"}})
    )
    return config


def measure(config: Path, workers: int) -> dict[str, float]:
    command = [sys.executable, "-m", "pipeline.cli", "run", str(config), f"machine.workers={workers}"]
    start = time.monotonic()
    process = subprocess.Popen([*command, "--until", "ingest"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    lead, worker = 0, 0
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        lead = max(lead, _peak(watched.pid))
        worker = max([worker, *(_peak(child.pid) for child in watched.children(recursive=True))])
        time.sleep(SAMPLED_EVERY_S)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}")
    record = json.loads(next(config.parent.glob("store/ingest/*/artifact.json")).read_text())
    return {
        "lead_mb": lead / 1e6,
        "worker_mb": worker / 1e6,
        "stage_s": record["seconds"],
        "all_s": time.monotonic() - start,
    }


def _peak(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 20000])
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    found = {}
    for count in options.sizes:
        with tempfile.TemporaryDirectory() as name:
            figures = measure(write_archive(Path(name), count), options.workers)
        found[count] = {**figures, "ms_per_file": 1e3 * figures["stage_s"] / count}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
