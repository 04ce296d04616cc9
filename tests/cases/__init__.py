"""Inputs from public bug reports of other projects; a test beside the code that reads them says what is right."""
