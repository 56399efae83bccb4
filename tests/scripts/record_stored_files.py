"""Write the files of this version to tests/stored: a folder named as the version.

    python tests/scripts/record_stored_files.py

It needs ml_dtypes. Files of a released version are never written again: a later one reads them.
"""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS / "support"))

import stored_files  # noqa: E402

import embag  # noqa: E402

folder = TESTS / "stored" / embag.__version__
folder.mkdir()
stored_files.record(folder)
