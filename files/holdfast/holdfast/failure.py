"""The one exception that a person sees."""


class Failure(Exception):
    """What went wrong and the way out, in one sentence."""
