"""The method: a student predicts a frozen teacher's latents at masked blocks (US-JEPA, arXiv 2602.19322)."""
