"""The project. Importing any of it sets, before torch is loaded, how torch's threads wait for each other."""

import os

# They spin for milliseconds by default, which takes the processor from whatever else trains on the machine.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
