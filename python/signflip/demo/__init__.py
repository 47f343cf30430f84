"""The demonstration: the whole way on a small preference-tuned model, with nothing but the public API."""

from signflip.demo.run import SHIPPED, SMOLLM2, run_demo

__all__ = ["SHIPPED", "SMOLLM2", "run_demo"]
