"""The book tool: claims as data, notebooks that are run and judged, and the site made of them.

It knows no paper's name and nothing of feedback alignment. In a notebook::

    import bookkit
    run = bookkit.start("paper/notebook", globals())
"""

from .record import Run, start

__all__ = ["Run", "start"]
