"""One thread, so that tests may run side by side, and property tests that look at the same examples every time."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("seeded", derandomize=True, deadline=None)
settings.load_profile("seeded")
