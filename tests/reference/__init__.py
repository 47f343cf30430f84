"""An independent float64 restatement of the models, and the yardstick that errors are measured with.

Nothing here imports signflip: these files are what the engine is judged by.
"""
