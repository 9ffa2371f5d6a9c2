"""Other systems that a user could pick, each in a virtual environment of its own, measured by the same callers."""
