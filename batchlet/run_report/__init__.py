"""The report of a run: what it did with what it was granted; its form is ``schema.json``."""
