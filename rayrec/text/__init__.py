"""Text encoders and the client of an OpenAI-compatible language model. Knows transformers and HTTP only."""
