"""Save tables over files whose modes and groups limit another user; run it as root."""

import os
import stat
import tempfile

import numpy as np

import embag

folder = tempfile.mkdtemp()
try:
    os.chmod(folder, 0o777)
    path = f"{folder}/t.npy"
    for mode, other_group, expected in [
        (0o444, False, 0o444),
        (0o400, False, 0o400),
        (0o640, True, 0o600),  # the group that could read it cannot be given
        (0o664, True, 0o644),
    ]:
        np.save(path, np.zeros(3))
        os.chown(path, 65534, 54321 if other_group else 65534)
        os.chmod(path, mode)
        child = os.fork()
        if child == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            embag.save_table(path, np.ones((2, 2), np.float32), bits=8 if mode == 0o400 else None)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        found = os.stat(path)
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (expected, 65534), oct(found.st_mode)
        os.unlink(path)
    # Root gives the group, so its members keep what they could do.
    np.save(path, np.zeros(3))
    os.chown(path, 0, 54321)
    os.chmod(path, 0o640)
    embag.save_table(path, np.ones((2, 2), np.float32))
    found = os.stat(path)
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o640, 54321)
finally:
    for name in os.listdir(folder):
        os.unlink(f"{folder}/{name}")
    os.rmdir(folder)
