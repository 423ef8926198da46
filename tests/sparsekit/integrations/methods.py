"""Methods that both trainers' callbacks are tried with: all that a step may need."""

from sparsekit.methods.dsl import DSL
from sparsekit.methods.gradual import Gradual
from sparsekit.methods.rigl import RigL

METHODS = [
    RigL(0.8, every=3, end=17),
    Gradual(0.8, begin=2, end=15, every=2),
    DSL(0.8, 4, 16, gradient_steps=3),
]
