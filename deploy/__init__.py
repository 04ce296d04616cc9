"""An encoder into other people's hands."""
