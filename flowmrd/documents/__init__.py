"""Documents of the user: TOML and CSV with located errors, the manifest of a run."""
