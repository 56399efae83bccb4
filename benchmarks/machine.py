"""The machine and the versions, which every result includes."""

import datetime
import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import embag

PACKAGES = (
    *("numpy", "torch", "zentorch", "fbgemm-gpu-cpu", "ml_dtypes", "numba", "scipy"),
    *("pyarrow", "polars", "duckdb", "fastapi", "uvicorn", "ray"),
)
VENDORS = {"AuthenticAMD": "AMD", "GenuineIntel": "Intel"}
ZEN_4 = (range(0x10, 0x20), range(0x60, 0x80), range(0xA0, 0xB0))  # models of family 25
CPUINFO = Path("/proc/cpuinfo")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def facts() -> dict[str, Any]:
    config = embag.show_config(mode="dicts")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": {
            **processor(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],  # over a minute; above about 0.1, other programs ran
            "caches": _caches(),
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


def processor(path: Path = CPUINFO) -> dict[str, Any]:
    """Return the processor: vendor, family and model, as numbers, where the system has them.

    "name" is for readers, and "key" for names of files.
    """
    fields: dict[str, str] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            field, _, value = line.partition(":")
            fields.setdefault(field.strip(), value.strip())
    title = fields.get("model name") or platform.processor() or platform.machine()
    if not {"vendor_id", "cpu family", "model"} <= set(fields):
        return {"processor": title, "name": title, "key": _as_key(title)}
    vendor = VENDORS.get(fields["vendor_id"], fields["vendor_id"])
    family, model = int(fields["cpu family"]), int(fields["model"])
    generation = _generation(vendor, family, model)
    return {
        "processor": title,
        "vendor": vendor,
        "family": family,
        "model": model,
        "generation": generation,
        "name": f"{vendor} family {family} model {model}" + (generation and f" ({generation})"),
        "key": _as_key(f"{vendor} {family} {model}"),
    }


def _as_key(name: str) -> str:
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def _generation(vendor: str, family: int, model: int) -> str:
    """Return the generation of an AMD processor, by the table in Linux's init of AMD."""
    if vendor != "AMD":
        return ""
    if family == 25:
        return "Zen 4" if any(model in models for models in ZEN_4) else "Zen 3"
    return {23: "Zen 1 or 2", 26: "Zen 5"}.get(family, "")


def _caches() -> dict[str, str]:
    """Return the size of each cache of the first processor."""
    caches = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((folder / f).read_text().strip() for f in ("level", "type", "size"))
        caches[f"L{level}" + {"Data": "d", "Instruction": "i"}.get(kind, "")] = size
    return caches


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
