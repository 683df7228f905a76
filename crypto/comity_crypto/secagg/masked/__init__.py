"""Profile `masked`: vectors of uint32 under masks alone."""
