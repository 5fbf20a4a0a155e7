"""Evidence that takes long: `python -m tests.reliability COMMAND`; docs/reliability.md has what it showed."""
