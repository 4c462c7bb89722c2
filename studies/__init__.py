"""Nothing imports these: speed and memory, the papers' ablations, what the docs' figures are made with."""
