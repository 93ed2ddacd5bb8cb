"""The machinery around a run. Without it every figure of a one-process run would be the same."""
