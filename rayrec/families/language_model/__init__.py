"""Small decoder-only language models."""
