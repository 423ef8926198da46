"""Why something could not be done, in a line of a report."""


def first_line(error: Exception) -> str:
    """What an error says first, at most 100 characters; its kind if it says nothing.

    >>> first_line(ValueError("\\n no \\nmore")), first_line(AssertionError())
    ('no', 'AssertionError')
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip()[:100]
