"""Score the pipeline on labelled files: how many blasts it finds, how often it is right, and from which level on.

Labels lie beside the files (`labels`); each file is gated as `flowmrd gate` does and compared with them event by event
(`scores`); the scores become rates, limits and agreement with their intervals (`summary`), tables and a page.
"""
