"""The stages in order: the us-jepa command, the demo, doctor, bench. Imported by nobody."""
