"""What of embag/ can be collected."""

from importlib.util import find_spec

# What needs a package that is not there.
collect_ignore = [] if find_spec("torch") else ["embag/torch.py"]
if not all(map(find_spec, ("click", "rich", "pyarrow"))):
    collect_ignore.append("embag/cli")
