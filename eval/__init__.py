"""A frozen encoder to numbers: features, probes, metrics with intervals. Trains no encoder."""
