"""Training methods that fit any model: each works on logits, on labels or on the shared representation. Knows torch only."""
