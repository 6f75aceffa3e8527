"""Gates of other programs and the open standard: read, evaluated by our engine, written."""
