"""prunefuse called from other active-learning packages: one module for each, which imports that package.

``prunefuse.adapters.modal``, ``.skactiveml``, ``.baal`` and ``.small_text``. They pick what the package's own strategy picks,
best first, equals by lower index, and never a row without a distribution (NaN). ``pip install prunefuse[adapters]`` has the
versions that they are tested with.
"""
