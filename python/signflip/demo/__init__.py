"""The demonstration: the whole way on a small preference-tuned model, with nothing but the public API."""
