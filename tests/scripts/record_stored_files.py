"""Write files of the code as it is to tests/stored, in a folder of the version that comes next.

    python tests/scripts/record_stored_files.py 0.1.0

It needs ml_dtypes. The folder of a version that has been released is never written again.
"""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS / "support"))

import stored_files  # noqa: E402

folder = TESTS / "stored" / sys.argv[1]
folder.mkdir()
stored_files.record(folder)
