"""The contract of a sparsity method, and of the Sparsifier: for our tests and yours.

>>> from sparsekit.methods.rigl import RigL
>>> from sparsekit.testing import check_method
>>> check_method(RigL)
"""

from collections.abc import Callable

from sparsekit.method import Method
from sparsekit.sparsifier import Sparsifier
from sparsekit.testing import gradients, repetition, steps
from sparsekit.testing.backends import check_backends
from sparsekit.testing.subject import Subject, factory
from sparsekit.testing.training import one_thread

__all__ = ["check_method"]


def check_method(
    cls_or_factory: type[Method] | Callable[[float], Method],
    *,
    sparsity: float = 0.7,
    n_steps: int = 13,
    sparsifier: type[Sparsifier] = Sparsifier,
) -> None:
    """Raises an AssertionError that names what a method breaks; returns if nothing.

    Trains a small network some hundred times, for about three seconds, and checks that

    * the masks hold `count_active(total, sparsity_at(step))` weights at all times, and
      move only in steps that are due;
    * absent weights are zero in the weight and in every moment of SGD, momentum, Adam
      and AdamW, plain, foreach and fused; grown weights start at zero; kept ones keep
      their bits; frozen ones do not drift; masks are changed in place;
    * the method changes nothing that it is shown, draws from its generator only, and
      uses gradients of absent weights only if it says so; it is shown the sum of the
      gradients of its last `gradient_steps` steps;
    * a training resumed after any step equals one without a break, bit for bit, as do
      the two lines and `attach()`, sparsity 0 and dense, a step that GradScaler skips
      and none; clipping sees the masked gradient;
    * layers that store values instead of masking (`sparsekit.execution`) give the same
      training, bit for bit, and keep nothing of the dense shape between steps, except
      while they gather gradients for an update to come.

    Args:
        cls_or_factory: a method's class, or a function sparsity -> method. A class gets
            small times for its fields `begin`, `end`, `every`, `at`, `rewind_to`,
            `rounds` and `gradient_steps`; use a function to set more, such as
            `lambda sparsity: RigL(sparsity, every=2, end=9, allocation=uniform)`.
        sparsity: at which it is checked, in (0, 1); 0 is checked besides.
        n_steps: length of the trainings.
        sparsifier: a subclass to check in the place of Sparsifier.

    Raises:
        AssertionError: naming the step, the optimizer and the tensor.
        ValueError: if the method cannot be built, or what it raises itself.
    """
    subject = Subject(factory(cls_or_factory), sparsity, n_steps, sparsifier)
    with one_thread():
        steps.check_form(subject)
        repetition.check_seed(subject)
        steps.check_optimizers(subject)
        repetition.check_resume(subject)
        repetition.check_forms(subject)
        repetition.check_dense(subject)
        repetition.check_gradients(subject)
        gradients.check_sums(subject)
        repetition.check_scaler(subject)
        check_backends(subject)
