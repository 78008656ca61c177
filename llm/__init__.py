"""The library of the reproducible LLM pipeline."""

import os

# OpenMP's threads spin while they wait. Beside another busy process that costs a factor of 3 to 20
# in training speed; with a short spin about 2, and nothing measurable on a quiet machine
# (docs/LOG.md has what was measured). Read when torch is first imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
