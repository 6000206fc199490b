"""Serve the fused classifier over HTTP."""
