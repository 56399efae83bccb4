"""What of embag/ can be collected."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("torch") else ["embag/torch.py"]
