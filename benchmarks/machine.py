"""The machine and the versions, which every result includes."""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import embag

PACKAGES = (
    *("numpy", "torch", "fbgemm-gpu-cpu", "ml_dtypes", "numba", "scipy"),
    *("pyarrow", "polars", "duckdb", "fastapi", "uvicorn"),
)
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def facts() -> dict[str, Any]:
    config = embag.show_config(mode="dicts")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],  # over a minute; above about 0.1, other programs ran
            "last-level cache": _last_level_cache(),
            "huge pages": HUGE_PAGES.read_text().strip() if HUGE_PAGES.exists() else None,
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {
            "embag": config["version"],
            "compiler": config["compiler"],
            "level": config["levels"]["in use"],
            "python": platform.python_version(),
            **{package: _version(package) for package in PACKAGES},
        },
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _last_level_cache() -> str | None:
    sizes = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    return sizes[-1].read_text().strip() if sizes else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
