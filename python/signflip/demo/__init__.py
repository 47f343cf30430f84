"""The demonstration: the whole way on a small preference-tuned model, with nothing but the public API."""

from signflip.demo.run import run_demo

__all__ = ["run_demo"]
